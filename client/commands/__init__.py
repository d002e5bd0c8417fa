"""The verbs of `python -m client`, a module each."""

import argparse
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # to which `add_parser` adds a module's verb

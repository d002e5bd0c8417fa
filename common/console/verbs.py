"""A command's verbs: a verb's module is imported when the verb is called, since some take seconds to import torch."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import NamedTuple, TypeAlias

from common.errors import UserError

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # to which `add_parser` adds a module's verb


class Verb(NamedTuple):
    """A verb of a command."""

    help: str
    module: str  # has `add_parser(verbs)`, which adds the verb and sets `run`


def call(program: str, description: str | None, known: Mapping[str, Verb], arguments: Sequence[str] | None) -> int:
    """Call the verb that the arguments (None: the process's) name, and return its exit code.

    It is 2 with one line on stderr for a `UserError`, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(prog=program, description=description)
    verbs = parser.add_subparsers(dest="verb", required=True)
    module = known[words[0]].module if words and words[0] in known else ""
    try:
        if module:
            import_module(module).add_parser(verbs)
        for name, verb in known.items():
            if verb.module != module:
                verbs.add_parser(name, help=verb.help)
        options = parser.parse_args(words)
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports it

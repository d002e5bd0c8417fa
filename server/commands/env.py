"""`python -m server env`: print the environment that `flwr` and `flower-*` commands typed by hand need."""

import argparse
import os
import shlex

from common.console.verbs import Verbs
from common.flower.processes import environment, flower_home
from common.paths import check_writable


def add_parser(verbs: Verbs) -> None:
    """Add this verb."""
    parser = verbs.add_parser("env", description=__doc__)
    parser.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print an `export` line for Flower's home, which it makes, and for every variable that has another value now."""
    home = flower_home(None)
    check_writable(home, "set FLWR_HOME to a folder that this user can write")
    # this process has the home in its environment already, the shell may not
    changed = {k: value for k, value in environment(home).items() if k == "FLWR_HOME" or os.environ.get(k) != value}
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in changed.items()))
    return 0

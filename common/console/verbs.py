"""A command's verbs: a verb's module is imported when the verb is called, since some take seconds to import torch."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import NamedTuple, TypeAlias

from common.errors import UserError
from common.flower.processes import flower_home

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # to which `add_parser` adds a module's verb


ABSENT = ("flwr", "torch", "torchvision")  # on a device that only infers with exported networks
INSTALL = "pip install -e . in the project's folder, or give an exported model (`python -m server export`)"


class Verb(NamedTuple):
    """A verb of a command."""

    help: str
    module: str
    add: str = "add_parser"  # its function that adds the verb and sets `run`


def call(program: str, description: str | None, known: Mapping[str, Verb], arguments: Sequence[str] | None) -> int:
    """Call the verb that the arguments (None: the process's) name, and return its exit code.

    It is 2 with one line on stderr for a `UserError`, 130 if interrupted.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    os.environ["FLWR_HOME"] = str(flower_home(None))  # beside which every verb finds runs, states and caches
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: an ASCII terminal cannot show every name
    parser = argparse.ArgumentParser(prog=program, description=description)
    verbs = parser.add_subparsers(dest="verb", required=True)
    chosen = known.get(words[0]) if words else None
    try:
        if chosen:
            getattr(import_module(chosen.module), chosen.add)(verbs)
        for name, verb in known.items():
            if not chosen or verb[1:] != chosen[1:]:
                verbs.add_parser(name, help=verb.help)
        options = parser.parse_args(words)
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ABSENT:
            raise
        print(f"error: this needs the package {error.name!r}, which is not installed: {INSTALL}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell reports it


def later(module: str, name: str = "run") -> Callable[[argparse.Namespace], int]:
    """Return a verb's function, whose module is imported when it is called."""

    def run(options: argparse.Namespace) -> int:
        return int(getattr(import_module(module), name)(options))

    return run

"""`python -m server config`: print every configuration key with its value, its default and what it means.

The values are those of a run with the same -c and --preset; what that run would refuse is refused. A * marks values
that are not the default. Sections that the method does not read are left out, unless --all.
"""

import argparse
import sys

from common.console.verbs import Verbs
from server.commands.overrides import add_overrides, read_overrides

WIDTH = 160  # columns in a file or a pipe


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("config", description=__doc__)
    add_overrides(parser)
    parser.add_argument("--all", action="store_true", help="print the sections of all methods")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print a table for each section. Raises `UserError` with all mistakes."""
    # not at the top: `--help` does not need them
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from common.config import RunConfig, load_config
    from common.settings import keys, must_be, shown
    from strategies.configuration import read_config, unread
    from strategies.registry import all_settings, readers

    config = read_config(read_overrides(options), unread)
    values, defaults = config.flat(), load_config({}, all_settings()).flat()
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for kind in (*RunConfig.COMMON, *all_settings()):
        if not options.all and config.run.strategy not in readers(kind.SECTION):
            continue
        table = Table("", box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        table.title = Text(f"{kind.SECTION}: {(kind.__doc__ or '').partition(chr(10))[0]}")
        for name in ("key", "value", "default", "meaning"):
            table.add_column(name, no_wrap=name == "key", overflow="fold")
        for key, field in keys(kind).items():
            mark = "*" if values[key] != defaults[key] else ""
            free = field.annotation is str and not field.metadata
            meaning = field.description if free else f"{field.description} ({must_be(field)})"
            row = (mark, key, shown(values[key]), shown(defaults[key]), meaning or "")
            table.add_row(*map(Text, row), style="bold" if mark else "")
        console.print(table)
    return 0

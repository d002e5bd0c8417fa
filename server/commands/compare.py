"""`python -m server compare`: run several methods on one configuration and show them side by side."""

import argparse
import time

from common.console.verbs import Verbs
from server.commands.overrides import add_overrides, read_overrides
from server.commands.run import add_resources, run_all


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("compare", description=__doc__)
    parser.add_argument("--methods", default="eefl,darkdistill", help="comma-separated (default: %(default)s)")
    add_overrides(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 0 only if all runs completed. Raises `UserError`."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    common = read_overrides(options)
    runs = [common | {"run.strategy": m, "run.name": f"{m}-{stamp}"} for m in options.methods.split(",")]
    return run_all(runs, options)

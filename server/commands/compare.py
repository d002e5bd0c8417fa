"""`python -m server compare`: run several methods on one configuration and show them side by side."""

import argparse
import time

from common.console.verbs import Verbs
from common.errors import UserError
from server.commands.overrides import add_overrides, read_overrides
from server.commands.run import add_resources, run_all, runs_root

OWN = ("run.strategy", "run.name", "run.resume")  # keys that this verb sets, or that name one run


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("compare", description=__doc__)
    parser.add_argument("--methods", default="eefl,darkdistill", help="comma-separated (default: %(default)s)")
    add_overrides(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 0 only if all runs completed. Raises `UserError`."""
    from server.commands.check import check_run  # imports pydantic, which `--help` does not need

    methods = [method.strip() for method in options.methods.split(",")]
    if "" in methods or len(set(methods)) < len(methods):
        raise UserError(f"--methods {options.methods}: name each method once, with commas between them")
    stamp = time.strftime("%Y%m%d-%H%M%S")
    common, root = read_overrides(options), runs_root()
    if found := [key for key in OWN if key in common]:
        raise UserError(f"`server compare` sets {', '.join(found)} itself, from --methods: remove what has no effect")
    runs = [common | {"run.strategy": method, "run.name": f"{method}-{stamp}"} for method in methods]
    for values in runs:
        check_run(values, root, strategies=methods)
    return run_all(runs, options)

"""`python -m server compare`: a study of one seed, from the command line: several methods on one configuration."""

import argparse
import time

from common.console.verbs import Verbs
from common.errors import UserError
from server.commands.overrides import add_overrides, read_common
from server.commands.simulator import add_resources
from server.commands.study import add_parallel, run_study
from server.study.plan import Study, named_variants

OWN = ("run.strategy", "run.name", "run.resume")  # keys that this verb sets, or that name one run


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("compare", description=__doc__)
    parser.add_argument("--methods", default="eefl,darkdistill", help="comma-separated (default: %(default)s)")
    add_parallel(parser)
    add_overrides(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 0 only if all runs completed. Raises `UserError`."""
    methods = [method.strip() for method in options.methods.split(",")]
    common = read_common(options)
    if found := [key for key in OWN if key in common]:
        raise UserError(f"`server compare` sets {', '.join(found)} itself, from --methods: remove what has no effect")
    seed = common.pop("run.seed", 1)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"run.seed is {seed!r}, must be a whole number")
    name = f"compare-{time.strftime('%Y%m%d-%H%M%S')}"
    return run_study(Study(name, named_variants(methods, {}), [seed], common), options)

"""`python -m server run`: run one simulation to its end, and show its accuracies and where its report is."""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from common.flower.processes import flower_home
from server.commands import Verbs
from server.commands.cluster import gpu_share, worker_count
from server.commands.launch import Outcome, local_superlink, simulate
from server.commands.overrides import add_run, read_run
from strategies.callbacks.report import compare_runs, write_comparison


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("run", help="run one simulation to its end", description=__doc__)
    add_run(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run_all`."""
    parser.add_argument(
        "--workers", type=worker_count, default=0, help="worker processes, at most (default: one per core)"
    )
    parser.add_argument("--gpus", type=gpu_share, default=0.0, help="share of a GPU per worker (default: %(default)s)")
    parser.add_argument("--ray", metavar="ADDRESS", help="join this Ray cluster (default: $RAY_ADDRESS, else none)")


def run(options: argparse.Namespace) -> int:
    """Return 0 only if the run completed. Raises `UserError`."""
    return run_all([read_run(options)], options)


def run_all(runs: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> int:
    """Run simulations one after another and show them side by side; returns 0 only if all of them completed.

    Args:
        runs: the configuration keys of each run.
        options: from `add_resources`.

    Raises:
        UserError: the local SuperLink did not start, or Flower did not accept a run.
    """
    home = flower_home(None)
    os.environ["FLWR_HOME"] = str(home)  # the runs' folder is found beside it
    if options.ray:
        os.environ["RAY_ADDRESS"] = options.ray
    root, outcomes = home.parent / "runs", list[Outcome]()
    with local_superlink(home) as env:
        for overrides in runs:
            outcome = simulate(overrides, root, env, workers=options.workers, gpus=options.gpus)
            outcomes.append(outcome)
            if not outcome.completed:
                print(f"error: {outcome.failure}", file=sys.stderr)
    folders = [outcome.folder for outcome in outcomes if outcome.completed]
    if folders:
        print(compare_runs(folders))
        for folder in folders:
            print(f"report: {folder / 'report.html'}")
    if len(folders) > 1:
        path = folders[0].parent / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}.html"
        write_comparison(folders, path)
        print(f"comparison: {path}")
    return 0 if len(folders) == len(runs) else 1

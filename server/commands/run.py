"""`python -m server run`: run one simulation to its end, and show its accuracies and where its report is."""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from common.console.verbs import Verbs
from common.errors import UserError
from common.flower.processes import flower_home, interrupted_by_signals
from common.paths import check_writable
from server.commands import left_out
from server.commands.cluster import gpu_share, worker_count
from server.commands.launch import Outcome, local_superlink, simulate
from server.commands.overrides import add_run, read_run


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("run", description=__doc__)
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
    parser.add_argument(
        "--in-process", action="store_true", help="train in this process, without starting others: for small runs"
    )


def run(options: argparse.Namespace) -> int:
    """Return 0 only if the run completed. Raises `UserError`."""
    from server.commands.check import check_run  # imports pydantic, which `--help` does not need

    values = read_run(options)
    check_run(values, runs_root())
    return run_all([values], options)


def runs_root() -> Path:
    """Return the folder of all runs, unless `run.root` names another. Raises `UserError` for unwritable folders."""
    home = flower_home(None)
    check_writable(home, "set FLWR_HOME to a folder that this user can write")
    check_writable(home.parent / ".cache", "set FLWR_HOME to a folder in one that this user can write")
    check_writable(home.parent / "runs", "set FLWR_HOME to a folder in one that this user can write")
    return home.parent / "runs"


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
    with _simulator(home, root, options) as simulate_run:
        for overrides in runs:
            outcome = simulate_run(overrides)
            outcomes.append(outcome)
            if not outcome.completed:
                print(f"error: {outcome.failure}", file=sys.stderr)
    for line in chain.from_iterable(left_out.summary(outcome.folder) for outcome in outcomes):
        print(line)
    folders = [outcome.folder for outcome in outcomes if outcome.completed]
    _show(folders)
    return 0 if len(folders) == len(runs) else 1


@contextmanager
def _simulator(home: Path, root: Path, options: argparse.Namespace) -> Iterator[Callable[[Mapping[str, Any]], Outcome]]:
    """Yield what runs a simulation with given configuration keys and returns how it ended."""
    if options.in_process:
        if options.workers or options.gpus or options.ray:
            raise UserError("--in-process has no workers: remove --workers, --gpus and --ray")
        from server.commands.in_process import simulate_here  # imports torch

        with interrupted_by_signals():
            yield partial(simulate_here, root=root)
    else:
        with local_superlink(home) as env:
            yield partial(simulate, root=root, env=env, workers=options.workers, gpus=options.gpus)


def _show(folders: Sequence[Path]) -> None:
    """Print the runs' results side by side, and where their reports are."""
    # not at the top: it imports torch, whose memory this process does not need while it waits for the runs
    from strategies.callbacks.report import compare_runs, write_comparison

    if folders:
        print(compare_runs(folders))
        for folder in folders:
            print(f"report: {folder / 'report.html'}")
    if len(folders) > 1:
        path = folders[0].parent / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}.html"
        write_comparison(folders, path)
        print(f"comparison: {path}")

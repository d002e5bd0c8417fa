"""`python -m server run`: run one simulation to its end, and show its accuracies and where its report is."""

import argparse
import sys
from pathlib import Path

from common.console.verbs import Verbs
from common.flower.processes import flower_home
from common.paths import check_writable
from server.commands import left_out
from server.commands.overrides import add_run, read_run
from server.commands.simulator import add_resources, simulator


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("run", description=__doc__)
    add_run(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Return 0 only if the run completed. Raises `UserError`."""
    from server.commands.check import check_run  # imports pydantic, which `--help` does not need

    values, root = read_run(options), runs_root()
    check_run(values, root)
    with simulator(options) as simulate:  # at its end Ray takes a second to stop
        outcome = simulate.run(values, root)
        for line in left_out.summary(outcome.folder):
            print(line)
        if outcome.completed:
            _show(outcome.folder)
        else:
            print(f"error: {outcome.failure}", file=sys.stderr)
    return 0 if outcome.completed else 1


def runs_root() -> Path:
    """Return the folder of all runs, unless `run.root` names another. Raises `UserError` for unwritable folders."""
    home = flower_home(None)
    check_writable(home, "set FLWR_HOME to a folder that this user can write")
    check_writable(home.parent / ".cache", "set FLWR_HOME to a folder in one that this user can write")
    check_writable(home.parent / "runs", "set FLWR_HOME to a folder in one that this user can write")
    return home.parent / "runs"


def _show(folder: Path) -> None:
    """Print a run's results, and where its report is."""
    # not at the top: a process that waits for its run needs neither Flower nor a template engine
    from strategies.callbacks.report.comparison import comparison_rows, text_table
    from strategies.callbacks.report.measures import Group
    from strategies.callbacks.report.records import load_run

    run = load_run(folder)
    print(text_table(comparison_rows([Group(run.strategy, {0: run})])))
    print(f"report: {folder / 'report.html'}")

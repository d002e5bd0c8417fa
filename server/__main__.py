"""`python -m server`: run simulations, serve devices on other machines, or answer those that infer with it."""

import argparse
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from common.errors import UserError
from server.commands import certificates, offload, start, submit
from server.commands.distree import calibrate, infer, students
from server.commands.launch import PROJECT, Outcome, environment, local_superlink, simulate
from server.commands.overrides import add_overrides, add_run, read_overrides, read_run
from strategies.callbacks.report import compare_runs, write_comparison


def main(arguments: list[str] | None = None) -> int:
    """Return the exit code: 0 only if every run completed, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(prog="python -m server", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run one simulation to its end")
    run.set_defaults(run=_run)
    env = verbs.add_parser("env", help='print the environment for typing flwr commands: eval "$(python -m server env)"')
    env.set_defaults(run=_environment)
    compare = verbs.add_parser("compare", help="run several methods one after another and show them side by side")
    compare.set_defaults(run=_compare)
    compare.add_argument("--methods", default="eefl,darkdistill", help="comma-separated (default: %(default)s)")
    add_run(run)
    add_overrides(compare)
    for verb in (run, compare):
        verb.add_argument("--workers", type=int, default=0, help="worker processes (default: one per core)")
        verb.add_argument("--gpus", type=float, default=0.0, help="GPU share of a worker")
    offload.add_parser(verbs)
    for module in (start, certificates):
        module.add_parser(verbs)
    submit.add_parsers(verbs)
    students.add_parser(verbs)
    calibrate.add_parser(verbs)
    infer.add_parser(verbs)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # as a shell says it


def _environment(_: argparse.Namespace) -> int:
    home = Path(os.environ.get("FLWR_HOME") or PROJECT / ".flwr").absolute()
    home.mkdir(exist_ok=True)
    changed = {name: value for name, value in environment(home).items() if os.environ.get(name) != value}
    print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in changed.items()))
    return 0


def _run(options: argparse.Namespace) -> int:
    return _all([read_run(options)], options)


def _compare(options: argparse.Namespace) -> int:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    common = read_overrides(options)
    runs = [common | {"run.strategy": m, "run.name": f"{m}-{stamp}"} for m in options.methods.split(",")]
    return _all(runs, options)


def _all(runs: list[dict[str, Any]], options: argparse.Namespace) -> int:
    home = Path(os.environ.get("FLWR_HOME") or PROJECT / ".flwr").absolute()
    os.environ["FLWR_HOME"] = str(home)  # the runs' folder is found beside it
    root, outcomes = home.parent / "runs", list[Outcome]()
    with local_superlink(home) as env:
        for overrides in runs:
            outcome = simulate(overrides, root, env, workers=options.workers, gpus=options.gpus)
            outcomes.append(outcome)
            if not outcome.completed:
                print(f"error: {outcome.folder.name} ended as {outcome.status}: {outcome.details}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())

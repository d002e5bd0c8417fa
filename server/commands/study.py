"""`python -m server study`: run methods x settings x seeds, and show means and spreads; it continues where it ended."""

import argparse
import csv
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from common.console.verbs import Verbs
from common.errors import UserError
from common.paths import output_file
from common.storage.files import write_bytes
from server.commands.overrides import add_overrides, given_keys, read_common, typed
from server.commands.run import runs_root
from server.commands.simulator import add_resources, simulator
from server.study.plan import Cell, Study, grid_options, named_variants, read_study


def add_parser(verbs: Verbs) -> None:
    """Add this verb and its options."""
    parser = verbs.add_parser("study", description=__doc__)
    parser.add_argument("file", nargs="?", type=Path, help="a study's TOML file, see server/study/README.md")
    parser.add_argument("--methods", help="comma-separated; the first one is the base of all gains")
    parser.add_argument("--seeds", help="comma-separated, such as 1,2,3")
    parser.add_argument(
        "--grid", action="append", default=[], metavar="KEY=VALUE,VALUE", help="run with each value; may be repeated"
    )
    parser.add_argument("--name", help="of the study's folder; the same name continues the same study")
    parser.add_argument(
        "--save", type=output_file, metavar="FILE", help="write the study's numbers (JSON) to this file too"
    )
    add_parallel(parser)
    add_overrides(parser)
    add_resources(parser)
    parser.set_defaults(run=run)


def add_parallel(parser: argparse.ArgumentParser) -> None:
    """Add the option of `run_study`."""
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="runs at once (default: %(default)s)")


def run(options: argparse.Namespace) -> int:
    """Return 0 only if all runs completed. Raises `UserError`."""
    if options.file and options.preset:
        raise UserError(f"--preset {options.preset}: a study's file names its preset itself (preset = ...)")
    file = read_study(options.file) if options.file else {}
    methods = _words(options.methods) if options.methods is not None else file.get("methods", [])
    grid = {key: [typed(key, v) for v in values] for key, values in grid_options(options.grid).items()}
    variants = file.get("variants", {})
    if options.methods is not None:  # the command line may leave variants out
        variants = {name: values for name, values in variants.items() if name in methods}
    study = Study(
        options.name or file.get("name") or f"study-{time.strftime('%Y%m%d-%H%M%S')}",
        named_variants(methods, variants),
        _seeds(options.seeds) if options.seeds is not None else file.get("seeds", [1]),
        file.get("settings", {}) | read_common(options),
        file.get("grid", {}) | grid,
    )
    study.refuse_overridden(given_keys(options))
    return run_study(study, options, save=options.save)


def run_study(study: Study, options: argparse.Namespace, *, save: Path | None = None) -> int:
    """Run what is missing of a study and show its results; returns 0 only if all cells completed.

    Raises `UserError` for a study that cannot be run, before anything starts.
    """
    from common.data.support import package_folder  # imports pydantic, which `--help` does not need
    from server.study.cells import finished, run_cells  # likewise
    from server.study.progress import StudyProgress

    if options.parallel < 1:
        raise UserError(f"--parallel {options.parallel}: give a number of runs from 1")
    for package in ("matplotlib", "scipy"):  # of its results, which come last
        package_folder(package, "a study", "report")
    folder = runs_root() / study.name
    cells = study.cells(folder)
    rounds = _check(study, cells, folder)
    missing, failures = [cell for cell in cells if not finished(cell.folder)], 0
    if kept := len(cells) - len(missing):
        print(f"{kept} of {len(cells)} runs are finished and kept")
    parallel = min(options.parallel, len(missing))  # each run has its part of the cores
    if missing:
        expected = {cell.folder: rounds[cell.folder] for cell in missing}
        with simulator(options, parallel) as how, StudyProgress(expected) as progress:
            for cell, outcome in run_cells(missing, parallel, how, progress.show):
                progress.ended(cell, outcome)
                failures += not outcome.completed
    from server.study.results import FEW, read_sections, saving, write_results  # imports Flower
    from strategies.callbacks.report.comparison import comparison_rows, text_table

    completed = [cell for cell in cells if finished(cell.folder)]
    sections = read_sections(completed)
    write_results(study, completed, sections, folder)
    if save:
        write_bytes(save, (folder / "study.json").read_bytes())
    for heading, groups in sections.items():
        print("\n".join(["", heading] if heading else []))
        print(text_table(comparison_rows(groups), shutil.get_terminal_size((120, 24)).columns))
    if 1 < len(study.seeds) < FEW:
        print(f"caution: {len(study.seeds)} seeds; a spread says little below {FEW}")
    print(f"study: {folder / 'study.html'}, with summary.csv, cells.csv and study.json beside it")
    if sentence := saving(sections):
        print(sentence)
    return 0 if not failures else 1


def _check(study: Study, cells: Sequence[Cell], folder: Path) -> dict[Path, int]:
    """Return each cell's rounds, by folder; raises `UserError` for one that cannot run, or ran with other settings."""
    from server.commands.check import check_run
    from server.study.cells import check_kept

    inner, rounds = {str(cell.folder) for cell in cells}, dict[Path, int]()
    for cell in cells:
        # another cell's folder is not there yet: for the check, a folder that is stands for it
        others = {key: value for key, value in cell.values.items() if value in inner}
        values = dict(cell.values) | dict.fromkeys(others, str(folder.parent))
        if cell.folder.exists():
            values["run.name"] = f"{time.strftime('%Y%m%d-%H%M%S')}-check"  # a kept run's name is taken, rightly
        config = check_run(values, folder, strategies=study.strategies)
        check_kept(cell, config.flat() | others)
        rounds[cell.folder] = config.run.rounds
    return rounds


def _words(text: str) -> list[str]:
    """Return comma-separated words; one with a comma in it stands in double quotes."""
    return [word.strip() for row in csv.reader([text], skipinitialspace=True) for word in row]


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in _words(text)]
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers with commas between them, such as 1,2,3") from error

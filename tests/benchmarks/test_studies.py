"""The study files: each can be read, and its cells pass the checks of a run."""

from pathlib import Path

import pytest

from server.commands.check import check_run
from server.study.plan import Study, named_variants, read_study
from strategies.registry import METHODS

STUDIES = sorted((Path(__file__).parents[2] / "benchmarks" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_study_can_run(path: Path, tmp_path: Path) -> None:
    found = read_study(path)
    study = Study(found["name"], named_variants(found["methods"], found["variants"]), found["seeds"],
                  found["settings"], found["grid"])  # fmt: skip
    assert set(study.strategies) <= METHODS.keys()
    for cell in study.cells(tmp_path):
        values = {key: str(tmp_path) if key == "distree.teacher" else value for key, value in cell.values.items()}
        check_run(values, tmp_path, strategies=study.strategies)

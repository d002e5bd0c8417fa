"""Running cells: several at once, needs first, killed processes, and what a failure leaves undone."""

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from server.commands.launch import Outcome
from server.study.cells import check_kept, finished, log_file, run_cells
from server.study.plan import Study, named_variants


class Fake:
    """Stands in for a simulator: each method's end is its own."""

    def run(self, overrides: Mapping[str, Any], root: Path, *, show: bool) -> Outcome:
        folder, method = root / overrides["run.name"], overrides["run.strategy"]
        print(f"{method} was here")
        if method == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if method == "meanwhile":
            time.sleep(3.0)
        if method == "broken":
            raise OSError(28, "No space left on device")
        if method == "refused":
            raise UserError("refused for a reason")
        done = "failed" if method == "failing" else "completed"
        return Outcome(folder, f"finished:{done}", "")


def ends(folder: Path, variants: dict[str, dict[str, Any]], parallel: int = 2) -> dict[str, Outcome]:
    cells = Study("s", named_variants(list(variants), variants)).cells(folder)
    return {cell.variant: outcome for cell, outcome in run_cells(cells, parallel, Fake(), lambda running: None)}


def test_cells_run_whatever_happens_to_others(tmp_path: Path) -> None:
    found = ends(tmp_path, {"a": {}, "failing": {}, "refused": {}, "b": {}})
    assert {name: outcome.status for name, outcome in found.items()} == {
        "a": "finished:completed", "failing": "finished:failed", "refused": "not started", "b": "finished:completed",
    }  # fmt: skip
    assert found["refused"].details == "refused for a reason"
    assert log_file(tmp_path / "a-s1").read_text() == "a was here\n"


def test_log_on_a_full_disk_fails_its_cell_alone(tmp_path: Path) -> None:
    log = log_file(tmp_path / "broken-s1")
    log.parent.mkdir()
    log.symlink_to("/dev/full")
    found = ends(tmp_path, {"broken": {}, "a": {}}, parallel=1)
    assert "No space left on device" in found["broken"].details
    assert found["a"].completed


@pytest.mark.parametrize("parallel", [1, 2])
def test_killed_process_fails_its_cell_alone(tmp_path: Path, parallel: int) -> None:
    found = ends(tmp_path, {"killed": {}, "meanwhile": {}, "b": {}}, parallel=parallel)
    assert found["killed"].status == "killed"
    assert str(log_file(tmp_path / "killed-s1")) in found["killed"].failure
    assert found["meanwhile"].completed
    assert found["b"].completed


def test_cell_that_breaks_fails_alone(tmp_path: Path) -> None:
    found = ends(tmp_path, {"broken": {}, "a": {}})
    log = log_file(tmp_path / "broken-s1")
    assert found["broken"].details == f"OSError: [Errno 28] No space left on device; see {log}"
    assert "Traceback" in log.read_text()
    assert found["a"].completed


def test_cell_runs_after_the_one_that_it_needs(tmp_path: Path) -> None:
    taught = {"run.strategy": "distree", "distree.teacher": "cell:a"}
    assert list(ends(tmp_path, {"a": {}, "taught": taught})) == ["a", "taught"]
    taught["distree.teacher"] = "cell:failing"
    found = ends(tmp_path / "other", {"failing": {}, "taught": taught})
    assert found["taught"].status == "not started"
    assert found["taught"].details == "it needs failing, which failed"


def test_run_counts_as_finished_after_its_last_end(tmp_path: Path) -> None:
    lines = ['{"event": "start"}', '{"event": "end", "failure": "quorum"}', '{"event": "start"}']
    assert not finished(tmp_path)
    for end, expected in (("", False), ('{"event": "end", "failure": ""}', True)):
        (tmp_path / "metrics.jsonl").write_text("\n".join([*lines, end]) + "\n")
        assert finished(tmp_path) == expected


def test_kept_run_has_the_settings_of_the_study(tmp_path: Path) -> None:
    (cell,) = Study("s", named_variants(["eefl"], {})).cells(tmp_path)
    check_kept(cell, {"train.lr": 0.1})  # nothing there
    cell.folder.mkdir()
    (cell.folder / "config.toml").write_text("[train]\nlr = 0.1\n[about]\nformat = 2\n")
    check_kept(cell, {"train.lr": 0.1, "run.commit": "other"})
    with pytest.raises(UserError, match=r"holds a run with train\.lr = 0\.1, but this study has 0\.2"):
        check_kept(cell, {"train.lr": 0.2})


def test_kept_run_of_a_cluster_has_the_state_that_it_chose(tmp_path: Path) -> None:
    (cell,) = Study("s", named_variants(["eefl"], {})).cells(tmp_path / "free")
    (wanted,) = Study("s", named_variants(["eefl"], {}), settings={"clients.state": "node"}).cells(tmp_path / "set")
    for one in (cell, wanted):
        one.folder.mkdir(parents=True)
        (one.folder / "config.toml").write_text('[clients]\nstate = "server"\n[about]\nformat = 2\n')
    check_kept(cell, {"clients.state": "node"})
    with pytest.raises(UserError, match=r"clients\.state = 'server', but this study has 'node'"):
        check_kept(wanted, {"clients.state": "node"})


def test_key_that_is_newer_than_a_kept_run_counts_as_its_default(tmp_path: Path) -> None:
    (cell,) = Study("s", named_variants(["eefl"], {})).cells(tmp_path)
    cell.folder.mkdir()
    (cell.folder / "config.toml").write_text("[train]\nlr = 0.1\n[about]\nformat = 2\n")
    check_kept(cell, {"train.lr": 0.1, "stream.memory": 0})
    with pytest.raises(UserError, match=r"holds a run with stream\.memory = 0, but this study has 250"):
        check_kept(cell, {"train.lr": 0.1, "stream.memory": 250})

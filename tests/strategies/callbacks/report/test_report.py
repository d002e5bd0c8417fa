import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strategies.callbacks import report
from strategies.callbacks.report import Report, write_report
from strategies.callbacks.run_folder import RunFolder

MakeRun = Callable[..., Path]


def test_real_run_writes_a_report(tmp_path: Path, prepare_run: Callable[..., Any]) -> None:
    pytest.importorskip("matplotlib")
    run = prepare_run({"run.name": "real", "server.evaluate-every": 1})
    folder = RunFolder.create(tmp_path / "runs", run.strategy.config)
    run.strategy.callbacks = [folder, Report(folder.folder)]
    run.strategy.start(run.grid)
    page = (folder.folder / "report.html").read_text()
    assert ">completed</span>" in page
    assert "<dd>2 of 2</dd>" in page
    assert page.count("<svg") >= 5
    written = write_report(folder.folder)
    assert written.read_text() == page


def test_missing_matplotlib_is_logged_and_the_run_succeeds(
    make_run: MakeRun, strategy: Any, flower_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    Report(folder).on_end(strategy, "")
    assert flower_log == ["no report: plots need matplotlib: pip install -e '.[report]'"]
    assert not (folder / "report.html").exists()


def test_mistake_of_the_report_is_logged_and_the_run_succeeds(
    make_run: MakeRun, strategy: Any, flower_log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "write_report", lambda folder: {}["mean"])
    Report(make_run()).on_end(strategy, "")
    assert flower_log == ["no report: KeyError: 'mean'"]


def test_failed_run_has_a_report(make_run: MakeRun, strategy: Any) -> None:
    pytest.importorskip("matplotlib")
    folder = make_run(failure="QuorumError: 0 of 6 clients answered")
    Report(folder).on_end(strategy, "QuorumError")
    assert "failed: QuorumError: 0 of 6 clients answered" in (folder / "report.html").read_text()

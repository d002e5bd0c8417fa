"""The MLflow tracker, on a real SQLite store."""

import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from strategies.callbacks.trackers.mlflow import MLflow
from strategies.configuration import read_config
from tests.strategies.callbacks.samples import record


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run's folder; the environment names no store."""
    pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    run = tmp_path / "o'neil" / "run"
    run.mkdir(parents=True)
    return run


def test_run_has_parameters_numbers_and_report(folder: Path, strategy: Any) -> None:
    from mlflow import MlflowClient

    strategy.config = read_config({"run.name": "mine", "run.strategy": "eefl"})

    def track(after: int, rounds: tuple[int, ...], failure: str) -> None:
        strategy.round = after
        tracker = MLflow(folder)
        tracker.on_start(strategy)
        for round_ in rounds:
            tracker.on_round(strategy, record(round_))
        tracker.on_end(strategy, failure)

    track(0, (1, 2), "killed")
    client = MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "EarlyBloom"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FAILED"
    (folder / "report.html").write_text("<p>report</p>")
    track(1, (2, 3), "")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == strategy.config.run.name
    assert run.data.params["run.strategy"] == strategy.config.run.strategy
    history = client.get_metric_history(run.info.run_id, "accuracy/mean")
    assert {point.step: point.value for point in history} == pytest.approx({1: 0.15, 2: 0.3, 3: 0.45})
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["report.html"]
    assert (folder.parent / "mlflow-files").is_dir()


def test_run_of_an_older_version_goes_on_in_its_own(tmp_path: Path, folder: Path, strategy: Any) -> None:
    strategy.config, strategy.round = read_config({"run.name": "mine", "run.strategy": "eefl"}), 1
    tracker = MLflow(tmp_path)
    older = tracker._client.create_run(tracker._experiment, tags={"earlybloom.folder": str(tmp_path)})
    tracker.on_start(strategy)
    assert tracker._run == older.info.run_id


def test_run_that_mlflow_refuses_ends_in_a_sentence(folder: Path, strategy: Any) -> None:
    strategy.config = read_config({"run.name": "mine", "run.strategy": "eefl"})
    tracker = MLflow(folder)
    tracker._experiment = "99"
    with pytest.raises(UserError, match=r"run\.trackers has mlflow, which refuses the run: .*99"):
        tracker.on_start(strategy)


def test_store_that_cannot_be_used_is_refused_before_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    with pytest.raises(UserError, match="store nonsense://here cannot be used"):
        MLflow(folder)


def test_missing_mlflow_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[mlflow\]'"):
        MLflow(tmp_path)

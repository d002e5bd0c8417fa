"""What all trackers share."""

from typing import Any

import pytest

from common.errors import UserError
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers import Tolerated, make_trackers
from tests.strategies.callbacks.samples import record


class Unreachable(Callback):
    """A tool that has gone."""

    def on_start(self, strategy: Any) -> None:
        raise UserError("no such store")

    def on_round(self, strategy: Any, record: Any) -> None:
        raise ConnectionError("no route")

    def on_end(self, strategy: Any, failure: str) -> None:
        raise OSError("still no route")


def test_tracker_may_refuse_a_run_but_not_end_it(strategy: Any, flower_log: list[str]) -> None:
    tracker = Tolerated("mlflow", Unreachable())
    with pytest.raises(UserError, match="no such store"):
        tracker.on_start(strategy)
    tracker.on_round(strategy, record(3))
    tracker.on_end(strategy, "")
    assert flower_log == [
        "run.trackers: mlflow lacks round 3: no route",
        "run.trackers: mlflow could not close the run: still no route",
    ]


def test_named_trackers_are_tolerated(tmp_path: Any, strategy: Any) -> None:
    (tracker,) = make_trackers(["csv"], tmp_path)
    assert isinstance(tracker, Tolerated)
    tracker.on_start(strategy)
    tracker.on_round(strategy, record(1))
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 2

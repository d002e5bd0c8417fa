import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from strategies.callbacks.trackers.tensorboard import TensorBoard
from tests.strategies.callbacks.samples import record


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) per tag, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_rounds_repeated_after_a_resume_appear_once(tmp_path: Path, strategy: Any) -> None:
    pytest.importorskip("tensorboard")
    first = TensorBoard(tmp_path)
    first.on_start(strategy)
    for round_ in (1, 2, 3):
        first.on_round(strategy, record(round_, client_metrics={"loss": float(round_)}))
    first.on_end(strategy, "killed")
    strategy.round = 1
    second = TensorBoard(tmp_path)
    second.on_start(strategy)
    second.on_round(strategy, record(2, client_metrics={"loss": 20.0}))
    second.on_end(strategy, "")
    assert read(tmp_path / "tensorboard")["clients/loss"] == [(1, 1.0), (2, 20.0)]


def test_missing_tensorboard_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[report\]'"):
        TensorBoard(tmp_path)

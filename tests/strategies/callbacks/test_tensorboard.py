import sys
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from strategies.callbacks.tensorboard import TensorBoard, scalars
from tests.strategies.callbacks.samples import client_record, device_time, final_record, record


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) per tag, as TensorBoard reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(e.step, round(e.value, 4)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_scalars_hold_every_number_of_a_round() -> None:
    found = scalars(final_record(3))
    assert found == {
        "accuracy/exit-1": pytest.approx(0.3),
        "accuracy/exit-2": pytest.approx(0.6),
        "accuracy/mean": pytest.approx(0.45),
        "accuracy/calibrated": 0.58,
        "accuracy/calibrated-macs": 3e6,
        "clients/loss": pytest.approx(2 / 3),
        "method/generator-1-label": 1.0,
        "method/generator-2-label": 2.0,
        "seconds/clients": 1.0,
        "seconds/server": 0.5,
        "seconds/round": 2.0,
        "bytes/down": 3e6,
        "bytes/up": 1e6,
        "folded/depth-1": 2.0,
        "folded/depth-2": 1.0,
        "failures/clients": 0.0,
        "failures/rejected": 0.0,
        "failures/late": 0.0,
    }
    timed = scalars(record(2, device=device_time(2)))
    assert {tag: value for tag, value in timed.items() if tag.startswith("device/")} == {
        "device/seconds": 4.0,
        "device/total": 8.0,
        "device/energy": 30.0,
        "device/part-1-clients": 2.0,
        "device/part-1-busy": 2.0,
        "device/part-1-link": 0.5,
        "device/part-1-idle": 6.0,
        "device/part-2-clients": 1.0,
        "device/part-2-busy": 4.0,
        "device/part-2-link": 1.0,
        "device/part-2-idle": 0.0,
    }
    on_clients = scalars(client_record(1))
    assert {tag: value for tag, value in on_clients.items() if tag.startswith("client-accuracy/")} == {
        "client-accuracy/exit-1": 0.5,
        "client-accuracy/exit-2": 0.7,
        "client-accuracy/mean": pytest.approx(0.6),
        "client-accuracy/spread": pytest.approx(0.1),
        "client-accuracy/sampled-mean": 0.7,
        "client-accuracy/sampled-spread": 0.0,
        "client-accuracy/tuned": 0.6,
        "client-accuracy/tuned-saved": 0.375,
    }
    assert not any(tag.startswith("accuracy/") for tag in on_clients)


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
    with pytest.raises(UserError, match=r"pip install earlybloom\[report\]"):
        TensorBoard(tmp_path)

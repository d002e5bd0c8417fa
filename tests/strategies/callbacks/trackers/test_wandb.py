"""The W&B tracker, offline: what it wrote is read back."""

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from strategies.callbacks.trackers.wandb import WandB
from strategies.configuration import read_config
from tests.strategies.callbacks.samples import record
from tests.support.deployment import wait_until

BLOCK, HEADER = 32768, 7  # bytes of W&B's file: LevelDB's log format, with a header of its own as long as a record's
LAST = (1, 4)  # kinds of records: whole, or a last piece


def stored(file: Path) -> Iterator[bytes]:
    """Yield what W&B stored, message by message."""
    content, message, at = file.read_bytes(), b"", HEADER
    while at + HEADER < len(content):
        if BLOCK - at % BLOCK < HEADER:  # no header begins at the end of a block
            at += BLOCK - at % BLOCK
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + HEADER])
        if at + HEADER + length > len(content):
            return  # it is being written
        message += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in LAST:
            yield message
            message = b""


def entries(folder: Path) -> list[Any]:
    """Return the entries of the run's file once the last one is there: W&B writes while `finish` has returned."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    found: list[Any] = []

    def complete() -> bool:
        found[:] = [Record.FromString(message) for message in stored(file)]
        return any(entry.WhichOneof("record_type") == "exit" for entry in found)

    wait_until(complete, 30, f"{file} has no last entry")
    return found


def written(folder: Path) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Return the logged numbers, and the configuration."""
    history, config = [], {}
    for entry in entries(folder):
        if entry.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in entry.history.item}
            history.append({key: json.loads(value) for key, value in items.items()})
        if entry.WhichOneof("record_type") == "run":
            config |= {item.key: json.loads(item.value_json) for item in entry.run.config.update}
    return history, config


def test_run_has_configuration_and_numbers(tmp_path: Path, strategy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    strategy.config = read_config({"run.name": "mine", "run.strategy": "eefl"})
    tracker = WandB(tmp_path)
    tracker.on_start(strategy)
    for round_ in (1, 2):
        tracker.on_round(strategy, record(round_))
    tracker.on_end(strategy, "")
    history, config = written(tmp_path)
    assert {row["_step"]: row["accuracy/mean"] for row in history} == pytest.approx({1: 0.15, 2: 0.3})
    assert config["run.strategy"] == strategy.config.run.strategy


def test_missing_wandb_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[wandb\]'"):
        WandB(tmp_path)

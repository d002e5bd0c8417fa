"""Run folders as `RunFolder` leaves them."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from common.storage.files import write_tensors
from strategies.engine.rounds import Record
from tests.strategies.callbacks.samples import final_record, record

MakeRun = Callable[..., Path]


@pytest.fixture
def strategy() -> Any:
    """A strategy with the attributes that callbacks read."""
    return SimpleNamespace(round=0)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Return a function that writes a run folder and returns its path."""

    def make(
        name: str = "some-run",
        *,
        strategy: str = "eefl",
        records: list[Record] | None = None,
        failure: str | None = "",
        reports: list[dict[str, Any]] | None = None,
    ) -> Path:
        folder = tmp_path / name
        name, strategy = (json.dumps(text)[1:-1] for text in (name, strategy))  # escaped as in TOML
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.toml").write_text(
            f'[run]\nname = "{name}"\nstrategy = "{strategy}"\nrounds = 3\n\n[train]\nlr = 0.05\nepochs = 7\n\n'
            '[darkdistill]\nlabel-weight = 1.0\n\n[about]\nformat = 2\ndevice = "some cpu"\ncommit = ""\n'
        )
        rounds = [record(1), record(2), final_record(3)] if records is None else records
        events: list[dict[str, Any]] = [{"event": "start", "after": 0}, *(r.to_event() for r in rounds)]
        if failure is not None:
            events.append({"event": "end", "rounds": len(rounds), "failure": failure})
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        if reports:
            values = {"round": 3, "reports": reports}
            write_tensors(folder / "checkpoints" / "round-000003.safetensors", {"w": torch.zeros(1)}, values)
        return folder

    return make

"""A full disk: the run fails with one clear line, and resumes with the same bits once the disk has space again."""

import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from client.app import app
from common.config import Value
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.files import read_tensors
from server.execution import prepare
from strategies.callbacks.base import Callback
from strategies.engine.strategy import EarlyExitStrategy
from tests.support.killing import NODES, rounds

ROUNDS = 4
FULL = 3  # the round in which the disk is full


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Filler(Callback):
    """Fills the disk before a round is stored; `left` bytes stay free."""

    def __init__(self, disk: Path, left: int) -> None:
        self.file, self.left = disk / "filler", left

    def on_round(self, strategy: EarlyExitStrategy, record: Any) -> None:
        if record.round == FULL:
            room = os.statvfs(self.file.parent).f_bavail * os.statvfs(self.file.parent).f_frsize
            self.file.write_bytes(bytes(max(0, room - self.left)))


def run(settings: Mapping[str, Value], *first: Callback) -> EarlyExitStrategy:
    strategy = prepare(settings)
    strategy.callbacks = [*first, *strategy.callbacks]
    strategy.start(LocalGrid(app, NODES))
    return strategy


def lines(folder: Path) -> list[dict[str, Any]]:
    """Return every line as JSON; raises for a line that is not JSON."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# two pages: the metrics line fits, the checkpoint does not; none: the line does not fit either if it needs a new page
@pytest.mark.parametrize("left", [8192, 0])
def test_full_disk_is_reported_and_the_run_can_be_resumed(flat, disk, tmp_path, flower_log, left):
    settings = {**flat, "run.rounds": ROUNDS, "run.root": str(tmp_path / "runs"), "objective.name": "l2w",
                "objective.l2w-hidden": 4}  # fmt: skip
    whole = run({**settings, "run.name": "whole"})
    filler, folder = Filler(disk, left), disk / "test"
    with pytest.raises(UserError) as caught:
        run({**settings, "run.root": str(disk)}, filler)
    message = str(caught.value)
    assert message.startswith(f"round {FULL} cannot be kept: ")
    assert f"into {folder}" in message
    assert "No space left" in message or "os error 28" in message.lower() or "StorageFull" in message
    assert message.endswith(f"make room, then continue with run.resume {folder}")
    assert f"the run failed after round {FULL}: UserError: {message}" in flower_log
    assert [event["round"] for event in lines(folder) if event["event"] == "round"][:2] == [1, 2]
    checkpoints = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == [f"round-{r:06d}.safetensors" for r in (FULL - 2, FULL - 1)]
    assert read_tensors(checkpoints[-1])[1]["round"] == FULL - 1
    filler.file.unlink()
    again = run({"run.resume": str(folder)})
    assert all(torch.equal(again.model[key], value) for key, value in whole.model.items())
    assert again.committed == whole.committed
    assert rounds(folder / "metrics.jsonl") == [1, 2, 3, 4]
    assert lines(folder)[-1] == {"event": "end", "rounds": ROUNDS, "failure": ""}
    finals = [read_tensors(path / "final" / "model.safetensors")[0] for path in (folder, tmp_path / "runs" / "whole")]
    assert all(torch.equal(finals[0][key], value) for key, value in finals[1].items())

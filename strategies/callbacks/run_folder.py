"""The files of a run, and how it continues after a kill at any moment.

    runs/<name>/config.toml            all resolved values, versions, commit, device
                data.json              what was read: classes, counts, notes, see `common.data.summary`
                metrics.jsonl          a line per event
                checkpoints/           the last complete rounds, safetensors with JSON in the header
                final/model.safetensors  the finished model, see `common.storage.model_file`

A round's metrics line is written before its checkpoint: a line beyond the checkpoint belongs to a round that will be
run again and is cut off on resume, so no round is counted twice. Only one process writes at a time: a ServerApp
outlives a killed SuperLink by half a minute and would append its own end event to a run that already continues.
"""

import fcntl
import json
import math
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import torch
from flwr.supercore import log

from common.config import RunConfig
from common.data.summary import DataSummary
from common.errors import UserError
from common.storage.files import StorageError, append_line, read_tensors, write_tensors, write_text
from common.storage.format import FORMAT
from common.storage.run_files import DATA, LOCK, read_events, read_stored, refuse_taken
from common.storage.toml import toml_lines
from strategies.callbacks.base import Callback
from strategies.engine.rounds import Record
from strategies.engine.strategy import EarlyExitStrategy

KEPT = 2  # checkpoints
METHOD = "method."  # prefix of the method's own tensors, beside the model's
PATIENCE = 90.0  # seconds that a resumed run waits for the lock


class RunFolder(Callback):
    """Writes the run folder."""

    def __init__(self, folder: Path) -> None:
        """`folder` exists. Raises `UserError` when another process does not stop writing to it."""
        self.folder = folder
        self.metrics = folder / "metrics.jsonl"
        self._kept = list[dict[str, Any]]()  # events of a resumed run that still hold
        self._lock = (folder / LOCK).open("a")
        self._take()

    @staticmethod
    def create(root: Path, config: RunConfig) -> "RunFolder":
        """Return a new run's folder; raises `UserError` when the name is taken."""
        folder = root / config.run.name
        refuse_taken(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        created = RunFolder(folder)
        refuse_taken(folder)  # another process may have written there before it released the lock
        return created

    @staticmethod
    def reopen(folder: Path) -> tuple["RunFolder", dict[str, Any]]:
        """Return a stored run's folder and its flat configuration.

        Raises `UserError` when the folder holds no run, or another process writes to it.
        """
        stored = read_stored(folder)
        return RunFolder(folder), stored

    def check_data(self, now: DataSummary) -> None:
        """Raise `UserError` if the data are not those with which the run began."""
        try:
            began = DataSummary.from_json((self.folder / DATA).read_text())
        except FileNotFoundError:  # of an older version, or killed before it wrote the file
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"run.resume: {self.folder / DATA} cannot be read ({error}): restore it") from error
        if found := began.differences(now):
            raise UserError(
                f"run.resume {self.folder}: the data set is not the one that the run began with ({'; '.join(found)}): "
                f"restore it, or start a new run"
            )

    def restore(self, strategy: EarlyExitStrategy) -> None:
        """Put a strategy back to the last complete round; without any it starts at the first.

        Raises `UserError` when that round's checkpoint cannot be read.
        """
        for unfinished in (self.folder / "checkpoints").glob(".*"):
            unfinished.unlink()  # left by a kill during the write
        found = self._checkpoints()
        if found:
            try:
                tensors, values = read_tensors(found[-1])
            except UserError as error:
                remedy = "start a new run"
                if len(found) > 1:
                    remedy = f"delete it to continue after round {int(found[-2].stem.removeprefix('round-'))}"
                raise UserError(f"run.resume: {error}; restore it, or {remedy}") from error
            model = {k: v for k, v in tensors.items() if not k.startswith(METHOD)}
            method = {k.removeprefix(METHOD): v for k, v in tensors.items() if k.startswith(METHOD)}
            strategy.restore(model, method, values)
        self._kept = [event for event in read_events(self.metrics) if event.get("round", 0) <= strategy.round]
        log(INFO, "run %r continues after round %d", strategy.config.run.name, strategy.round)

    def on_start(self, strategy: EarlyExitStrategy) -> None:
        """Write the configuration and the start event."""
        about = {
            "format": FORMAT,
            "versions": {name: version(name) for name in ("flwr", "numpy", "torch", "torchvision")},
            "python": platform.python_version(),
            "device": _device_name(strategy.device),
            "commit": strategy.config.run.commit,
        }
        if strategy.round == 0:
            write_text(self.folder / DATA, strategy.data.to_json() + "\n")
            write_text(self.folder / "config.toml", _toml(strategy.config, about))
        events = [*self._kept, {"event": "start", "after": strategy.round, **about}]
        # in one step: what follows the file sees a resumed run's old events only with the new start
        write_text(self.metrics, "".join(json.dumps(event) + "\n" for event in events))

    def on_left_out(self, strategy: EarlyExitStrategy, name: str, reason: str) -> None:
        """Append an event at once: it is seen while the round waits, and kept if the round never ends."""
        self._append({"event": "left_out", "round": strategy.round + 1, "name": name, "reason": reason})

    def on_round(self, strategy: EarlyExitStrategy, record: Record) -> None:
        """Append the metrics line, then write the checkpoint that makes the round count."""
        try:
            self._save(strategy, record)
        except StorageError as error:
            raise UserError(
                f"round {record.round} cannot be kept: {error}; make room, then continue with run.resume {self.folder}"
            ) from error

    def _save(self, strategy: EarlyExitStrategy, record: Record) -> None:
        self._append(record.to_event())
        model, method, values = strategy.checkpoint()
        path = self.folder / "checkpoints" / f"round-{strategy.round:06d}.safetensors"
        write_tensors(path, model | {METHOD + key: value for key, value in method.items()}, values)
        for old in self._checkpoints()[:-KEPT]:
            old.unlink()

    def on_end(self, strategy: EarlyExitStrategy, failure: str) -> None:
        """Write the end event and, if the run succeeded, the finished model; then release the lock."""
        try:
            if not failure:
                strategy.save_final(self.folder / "final")
            self._append({"event": "end", "rounds": strategy.round, "failure": failure})
        except StorageError as error:
            if not failure:
                raise
            log(WARNING, "the end of the run is not in its metrics: %s", error)  # and the run's own failure is raised
        finally:
            self._lock.close()

    def _take(self) -> None:
        """Wait for the lock, which ends with its process; a process does not wait for its own lock."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError) as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"the run in {self.folder} has not ended: another process writes to it; end that one (see flwr "
                        "list and flwr stop), then continue with run.resume"
                    ) from error
                time.sleep(0.5)
            except OSError as error:
                log(WARNING, "cannot lock %s: %s; make sure that no other process writes there", self.folder, error)
                return

    def _append(self, event: dict[str, Any]) -> None:
        append_line(self.metrics, json.dumps(_finite(event), allow_nan=False))

    def _checkpoints(self) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob("round-*.safetensors"))


def _finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON lacks, by null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _toml(config: RunConfig, about: dict[str, Any]) -> str:
    sections: dict[str, dict[str, Any]] = {}
    for key, value in config.flat().items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    tables = sections | {"about": {k: v for k, v in about.items() if k != "versions"} | about["versions"]}
    return "\n".join(f"[{name}]\n{toml_lines(table)}" for name, table in tables.items())


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()

"""Where the stages run, and how they run a method: in this process, on the in-process grid."""

import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from client.app import app as client_app
from common.flower.local_grid import LocalGrid
from common.weights.flat import StateDict
from server.execution import prepare
from strategies.callbacks.base import Callback
from strategies.engine.rounds import Record
from strategies.engine.strategy import EarlyExitStrategy

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Host:
    """The device that is measured, and how much work a stage is given."""

    device: torch.device
    root: Path  # for the runs' folders
    small: bool = False  # little enough for a CPU: shows that the stages work

    def wait(self) -> float:
        """Return seconds, after everything queued on the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Ran:
    """What a run left."""

    start: StateDict  # the global model before the first round
    model: StateDict  # and after the last one
    records: list[Record]

    @property
    def round_seconds(self) -> float:
        """Seconds of the last round, in which nothing is compiled or read for the first time."""
        return self.records[-1].seconds["round"]

    def distance(self, other: "Ran") -> float:
        """Return how far two runs end apart, as a share of the way that the other went (L2 norms)."""
        apart = moved = 0.0
        for key, value in other.model.items():
            if value.is_floating_point():
                apart += float((self.model[key].double() - value.double()).square().sum())
                moved += float((value.double() - other.start[key].double()).square().sum())
        return (apart / moved) ** 0.5 if moved else float(apart > 0)

    def same_bits(self, other: "Ran") -> bool:
        """Return whether both ended with the same weights."""
        return all(torch.equal(self.model[key], value) for key, value in other.model.items())


class Recorder(Callback):
    """Keeps the rounds' records; `last` ends the run after that round, as a kill does."""

    def __init__(self, last: int = 0) -> None:
        self.records: list[Record] = []
        self.last = last

    def on_round(self, strategy: EarlyExitStrategy, record: Record) -> None:
        """Keep the record."""
        self.records.append(record)
        if record.round == self.last:
            raise InterruptedError


def run(host: Host, name: str, settings: Mapping[str, Any], device: torch.device | None = None, last: int = 0) -> Ran:
    """Run a method as the ServerApp does; `last` kills it after that round."""
    logging.disable(logging.INFO)
    kind = (device or host.device).type
    flat = {
        "run.name": name, "run.root": str(host.root), "clients.store": str(host.root / f"kept-{name}"),
        "clients.device": kind, "server.device": kind, **settings,
    }  # fmt: skip
    return _rounds(prepare(flat), last)


def resume(host: Host, name: str) -> Ran:
    """Continue a run that was killed."""
    return _rounds(prepare({"run.resume": str(host.root / name)}), 0)


def _rounds(strategy: EarlyExitStrategy, last: int) -> Ran:
    recorder = Recorder(last)
    strategy.callbacks.append(recorder)
    start = {key: value.clone() for key, value in strategy.model.items()}
    with suppress(InterruptedError):
        strategy.start(LocalGrid(client_app, [{"partition-id": 0}], concurrent=strategy.method.interleaved))
    return Ran(start, {key: value.clone() for key, value in strategy.model.items()}, recorder.records)

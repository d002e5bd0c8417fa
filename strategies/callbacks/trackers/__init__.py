"""Experiment trackers: each is a callback that hands a run's numbers to a tool that researchers know."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.supercore import log

from strategies.callbacks.base import Callback

if TYPE_CHECKING:
    from strategies.engine.rounds import Record
    from strategies.engine.strategy import EarlyExitStrategy

# Imported when a run asks for one: their packages are extras
KNOWN = {
    "csv": ("strategies.callbacks.trackers.table", "Table"),
    "tensorboard": ("strategies.callbacks.trackers.tensorboard", "TensorBoard"),
    "mlflow": ("strategies.callbacks.trackers.mlflow", "MLflow"),
    "wandb": ("strategies.callbacks.trackers.wandb", "WandB"),
}


def make_trackers(names: Sequence[str], folder: Path) -> list[Callback]:
    """Return the named trackers of the run in this folder; raises `UserError` for one whose package is missing."""
    trackers: list[Callback] = []
    for name in names:
        module, kind = KNOWN[name]
        trackers.append(Tolerated(name, getattr(import_module(module), kind)(folder)))
    return trackers


def identity(folder: Path) -> str:
    """Return the same short id for a run's folder at each start; names of runs may repeat in other folders."""
    return hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]


class Tolerated(Callback):
    """A tracker that may refuse a run before its first round, but cannot end one: its tool may be out of reach."""

    def __init__(self, name: str, tracker: Callback) -> None:
        self.name, self.tracker = name, tracker

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Open the run there."""
        self.tracker.on_start(strategy)

    def on_round(self, strategy: "EarlyExitStrategy", record: "Record") -> None:
        """Hand over the round's numbers."""
        try:
            self.tracker.on_round(strategy, record)
        except Exception as error:  # of any kind that a tool has
            log(WARNING, "run.trackers: %s lacks round %d: %s", self.name, record.round, error)

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Close the run there."""
        try:
            self.tracker.on_end(strategy, failure)
        except Exception as error:
            log(WARNING, "run.trackers: %s could not close the run: %s", self.name, error)

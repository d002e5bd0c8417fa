"""Experiment trackers: each is a callback that hands a run's numbers to a tool that researchers know."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from strategies.callbacks.base import Callback

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
        trackers.append(getattr(import_module(module), kind)(folder))
    return trackers

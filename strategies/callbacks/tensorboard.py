"""TensorBoard events, written when `run.tensorboard` is set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from strategies.callbacks.base import Callback
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from strategies.engine.strategy import EarlyExitStrategy

FOLDER = "tensorboard"


class TensorBoard(Callback):
    """Writes every number of a round below `tensorboard/` in the run folder."""

    def __init__(self, folder: Path) -> None:
        """Raise `UserError` when TensorBoard is missing, so that a run fails before it starts and not after round 1."""
        try:
            import torch.utils.tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError(
                "run.tensorboard needs TensorBoard: pip install earlybloom[report], or set run.tensorboard to false"
            ) from error
        self.folder = folder / FOLDER
        self._writer: SummaryWriter | None = None

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Open a new events file; the rounds that a resumed run repeats are purged from the older ones."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.folder), purge_step=strategy.round + 1 if strategy.round else None)

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Write the round's numbers and flush them, so that TensorBoard shows them at once."""
        assert self._writer is not None, "on_start comes first"
        for name, value in scalars(record).items():
            self._writer.add_scalar(name, value, record.round)
        self._writer.flush()

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Close the events file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def scalars(record: Record) -> dict[str, float]:
    """Return a record's numbers by TensorBoard tag, `group/name`."""
    accuracy = _by_exit(record.accuracy)
    if chosen := record.accuracy.get("calibrated"):
        accuracy |= {"calibrated": chosen["accuracy"], "calibrated-macs": chosen["mean_macs"]}
    on_clients = _by_exit(record.client_accuracy)
    if summary := record.client_accuracy:
        tuned = summary["tuned"]
        on_clients |= {"spread": summary["mean_spread"], "tuned": tuned["accuracy"], "tuned-saved": tuned["saved"]}
        if sampled := summary["sampled"]:
            on_clients |= {"sampled-mean": sampled["mean"], "sampled-spread": sampled["mean_spread"]}
    groups: dict[str, Mapping[Any, Any]] = {
        "accuracy": accuracy,
        "client-accuracy": on_clients,
        "clients": record.client_metrics,
        "method": record.terms,
        "seconds": record.seconds,
        "bytes": record.traffic,
        "device": {**record.device, **_parts(record.device)},
        "folded": {f"depth-{depth}": number for depth, number in record.clients.items()},
        "failures": {"clients": len(record.failures), "rejected": len(record.rejected), "late": len(record.late)},
    }
    return {
        f"{group}/{name}": float(value)
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _parts(device: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part's clients by name."""
    parts = device.get("by_part", {})
    return {f"part-{part}-{name}": value for part, sums in parts.items() for name, value in sums.items()}


def _by_exit(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy of each exit and their mean; empty when nothing was measured."""
    if not measured:
        return {}
    return {f"exit-{e}": value for e, value in enumerate(measured["exits"], start=1)} | {"mean": measured["mean"]}

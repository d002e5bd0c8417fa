"""TensorBoard events, in the run's folder."""

from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers.scalars import scalars
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
            raise UserError("run.trackers has tensorboard, which is missing: pip install -e '.[report]'") from error
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

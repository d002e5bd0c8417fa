"""Weights & Biases: a run of ours is a run there, with its configuration and its numbers.

Without `WANDB_MODE` nothing leaves this machine: the run is written to `wandb/` in its folder, and `wandb sync` uploads
it later. `WANDB_MODE=online` uploads at once; `WANDB_PROJECT` and the other variables of W&B hold too.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers import identity
from strategies.callbacks.trackers.scalars import scalars
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy

PROJECT = "earlybloom"


class WandB(Callback):
    """Hands a run to Weights & Biases."""

    def __init__(self, folder: Path) -> None:
        """Raise `UserError` when wandb is missing."""
        try:
            import wandb  # noqa: F401
        except ImportError as error:
            raise UserError("run.trackers has wandb, which is missing: pip install -e '.[wandb]'") from error
        self.folder = folder
        self._run: Any = None

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Open the run; a resumed one goes on under its id. Raises `UserError` where W&B refuses it."""
        import wandb

        quiet = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, x_disable_stats=True)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=strategy.config.run.name,
                id=identity(self.folder), dir=self.folder, config=strategy.config.flat(),
                resume="allow", settings=quiet, mode=None if os.environ.get("WANDB_MODE") else "offline",
                reinit="create_new",
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise UserError(f"run.trackers has wandb, which refuses the run: {error}") from error

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Log the round's numbers."""
        self._run.log(scalars(record), step=record.round)

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Close the run."""
        if self._run is not None:
            self._run.finish(exit_code=1 if failure else 0)
            self._run = None

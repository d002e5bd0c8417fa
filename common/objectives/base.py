"""What every local objective offers: a loss over all exits, a hook before it, and its state as tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.networks.base import EarlyExitNetwork


@dataclass(frozen=True)
class Loss:
    """The loss of one batch."""

    total: Tensor  # scalar to differentiate
    per_exit: Tensor  # (E, B), detached unweighted cross-entropy; row 0 is the difficulty that DarkDistill reports


class Objective(Protocol):
    """A local training objective. Call `before_step`, then `loss`, once per batch, in that order."""

    def before_step(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> None:
        """Prepare for the loss of this batch; `lr` is the network's learning rate now."""
        ...

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to keep until the client's next round, on the CPU; empty if nothing is kept."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state of this objective for as many exits; raises `UserError` for any other."""
        ...


class StatelessObjective:
    """The hooks of an objective that prepares and keeps nothing."""

    def before_step(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept only an empty state."""
        if state:
            raise UserError("the stored objective is not this run's: set another run.name, or the same objective.name")


def exit_losses(logits: Sequence[Tensor], y: Tensor) -> Tensor:
    """Return every sample's cross-entropy at every exit, `(E, B)`, from one `(B, C)` per exit and `(B,)`."""
    return torch.stack([F.cross_entropy(exit_logits, y, reduction="none") for exit_logits in logits])

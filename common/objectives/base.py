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
    """The loss of one batch.

    Attributes:
        total: scalar to differentiate.
        per_exit: detached unweighted cross-entropy of every sample at every exit, `(E, B)`; row 0 is the
            difficulty that DarkDistill reports.
    """

    total: Tensor
    per_exit: Tensor


class Objective(Protocol):
    """A local training objective. Call `before_step`, then `loss`, once per batch, in that order."""

    def before_step(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> None:
        """Prepare for the loss of this batch; `lr` is the network's learning rate now."""
        ...

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return what must survive until the client's next round, on the CPU; empty if nothing must."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state of this objective for as many exits; UserError if it isn't one."""
        ...


class StatelessObjective:
    """The hooks of an objective that has nothing to prepare and nothing to remember."""

    def before_step(self, network: EarlyExitNetwork, x: Tensor, y: Tensor, lr: float) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Accept only an empty state."""
        if state:
            raise UserError("the stored objective is another one than this run's; start under another run name")


def exit_losses(logits: Sequence[Tensor], y: Tensor) -> Tensor:
    """Return every sample's cross-entropy at every exit, `(E, B)`, from one `(B, C)` per exit and `(B,)`."""
    return torch.stack([F.cross_entropy(exit_logits, y, reduction="none") for exit_logits in logits])

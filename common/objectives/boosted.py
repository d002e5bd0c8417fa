"""Boosted training: each exit corrects the ones before it (BoostNet, Yu et al., AAAI 2023)."""

from dataclasses import dataclass

from torch import Tensor

from common.errors import UserError
from common.networks.base import EarlyExitNetwork, Rescale
from common.objectives.base import Loss, StatelessObjective, exit_losses
from common.sections.objective import ENSEMBLE


@dataclass(frozen=True)
class Boosted(StatelessObjective):
    """`sum_e mean_b CE(F_e(x_b), y_b)` with gradients rescaled so that all exits reach the trunk alike."""

    # "boost" lets each of E exits reach the first block group with 1/E; "legacy" is the published DarkDistill code's
    # 1/4, 1/12, 1/24, 1/24 (E = 4), only to reproduce its numbers
    rescale: Rescale = "boost"

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`.

        Raises:
            UserError: the network does not ensemble its exits.
        """
        if network.ensemble <= 0:
            raise UserError(f"the boosted objective needs a network built with ensemble={ENSEMBLE}; it has 0")
        losses = exit_losses(network.forward_exits(x, rescale=self.rescale).logits, y)
        return Loss(losses.mean(1).sum(), losses.detach())

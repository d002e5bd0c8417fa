"""Joint training: the sum of all exits' cross-entropies (BranchyNet, Teerapittayanon et al., ICPR 2016)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from common.networks.base import EarlyExitNetwork
from common.objectives.base import Loss, StatelessObjective, exit_losses


@dataclass(frozen=True)
class Joint(StatelessObjective):
    """`sum_e weight_e * mean_b CE(z_e(x_b), y_b)`."""

    exit_weights: tuple[float, ...] = ()  # one per exit, shallow to deep; a shallower network uses the first; (): 1

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        losses = exit_losses(network(x), y)
        means = losses.mean(1)
        weights = _weights(self.exit_weights[: len(means)], means.device) if self.exit_weights else 1.0
        return Loss((weights * means).sum(), losses.detach())


@lru_cache(maxsize=8)
def _weights(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return the weights on the device, where they are copied once and not in every step."""
    return torch.tensor(values, device=device)

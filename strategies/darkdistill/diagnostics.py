"""What a round's distillation comes to (ours): how far it moves the weights, and how varied its samples are."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.networks.base import EarlyExitNetwork
from common.weights.flat import StateDict

LEAST = 1e-3  # distillation that moves the weights by a smaller share of the clients' movement changes nothing


@dataclass(frozen=True)
class Movement:
    """Lengths (Euclidean, over all tiers together) by which a round moved the parameters that distillation reaches."""

    clients: float  # from what the clients received to the average of what they sent
    distillation: float  # by the losses' gradients, without weight decay
    decay: float  # by weight decay

    @property
    def share(self) -> float:
        """The distillation's movement by that of the clients; 0 where both are 0."""
        return self.distillation / self.clients if self.clients else float("inf") if self.distillation else 0.0

    @classmethod
    def measure(
        cls, received: StateDict, steps: Iterable[tuple[StateDict, EarlyExitNetwork]], shrinkage: float
    ) -> "Movement":
        """Return the movement of a round.

        Steps of SGD without momentum turn W into  s * W - sum of lr * gradients, each shrunk by the later steps,  where
        s = (1 - lr * weight decay)^steps. So the distillation's part is the new weights minus s * W.

        Args:
            received: the weights that the clients got, with at least the keys of the models.
            steps: each model's averaged weights before the distillation, and the model after it; the parameters that
                have a gradient are those that the distillation reached.
            shrinkage: s.
        """
        squares = torch.zeros(3, dtype=torch.float64)
        for before, model in steps:
            for key, parameter in model.named_parameters():
                if parameter.grad is None:
                    continue
                sent, averaged, now = (t.detach().double().cpu() for t in (received[key], before[key], parameter))
                parts = (averaged - sent, now - shrinkage * averaged, (1 - shrinkage) * averaged)
                squares += torch.stack([part.square().sum() for part in parts])
        return cls(*squares.sqrt().tolist())

    def terms(self) -> Mapping[str, float]:
        """Return plain values for the log."""
        return {"moved-clients": self.clients, "moved-distillation": self.distillation, "moved-decay": self.decay}


def shrinkage(optimizer: Optimizer, steps: int) -> float:
    """Return (1 - lr * weight decay)^steps of plain SGD: what weight decay alone leaves of a weight."""
    group = optimizer.param_groups[0]
    return float((1 - group["lr"] * group["weight_decay"]) ** steps)


def variety(features: Tensor) -> float:
    """Return in how many directions features (B, D) vary: the participation ratio of their covariance's eigenvalues.

    It lies between 1, where all samples lie on a line, and min(B - 1, D); 0 where all samples are equal. Neither the
    features' scale nor their mean matters.
    """
    centred = features.double() - features.double().mean(dim=0)
    gram = centred @ centred.T
    total = gram.square().sum()
    return float(gram.trace().square() / total) if total > 0 else 0.0

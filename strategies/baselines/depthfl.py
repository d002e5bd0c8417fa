"""DepthFL (Kim et al., ICLR 2023): depth-scaled federated learning with mutual self-distillation among the exits.

1. Clients train prefixes of unequal depth. Local loss over their E exits, p_e = softmax(z_e / T):

       sum_e CE(z_e, y)  +  weight / (E - 1) * sum_e sum_{j != e} T^2 * KL(stopgrad(p_j) || p_e)

2. The server averages each layer over the clients that hold it (EEFL's average).

Left out: FedDyn's dynamic regulariser, which the paper adds for heterogeneous data, and its prediction by the ensemble
of all exits. Here every exit is evaluated by itself, as for all methods of this project.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.networks.base import EarlyExitNetwork
from common.objectives import Loss, Objective, exit_losses
from common.objectives.base import StatelessObjective
from strategies.baselines.settings import DepthFLSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.node.local_training import LocalTraining


def mutual_distillation(logits: Sequence[Tensor], temperature: float) -> Tensor:
    """Return `1 / (E - 1) * sum_e sum_{j != e} mean_b T^2 KL(p_j || p_e)`, a scalar; 0 for a single exit.

    Args:
        logits: one `(B, C)` per exit; as a teacher an exit gets no gradient.
        temperature: T of the softmax.
    """
    students = [F.log_softmax(z / temperature, dim=1) for z in logits]
    teachers = [student.detach() for student in students]
    total = torch.zeros((), device=logits[0].device)
    for e, student in enumerate(students):
        for j, teacher in enumerate(teachers):
            if j != e:
                total = total + F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return total * temperature**2 / max(1, len(logits) - 1)


@dataclass(frozen=True)
class SelfDistillation(StatelessObjective):
    """Cross-entropies of all exits, and mutual self-distillation with this weight and temperature."""

    weight: float
    temperature: float

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        logits = network(x)
        losses = exit_losses(logits, y)
        total = losses.mean(1).sum() + self.weight * mutual_distillation(logits, self.temperature)
        return Loss(total, losses.detach())


class DepthFL(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""


class DepthFLLocal(LocalTraining):
    """E local epochs of SGD on the exits' losses with self-distillation."""

    def objective(self, job: Job, exits: int) -> Objective:
        """Return this round's objective; the run's `objective` section does not apply."""
        settings = job.config.of(DepthFLSettings)
        return SelfDistillation(settings.weight(job.round), settings.temperature)


METHOD = Method("depthfl", DepthFL, DepthFLLocal, (DepthFLSettings,), ensemble=lambda config: 0.0)

"""A client's objective (CAFEDistill, Liu et al., arXiv 2601.10015, section 4).

With m exits, k unlocked students and p = softmax(z / T):

    ce_weight / d * (sum_{e < k} CE(z_e, y) + CE(z_last, y))
        + kd_weight * sum_{e < k} T^2 KL(stopgrad(p_teacher) || p_e)

d is k + 1, the exits that learn, or m as in the published code (`ce_division`). With m, an exit's cross-entropy weighs
the same in every round. With k + 1 the cross-entropies of a round weigh 1 together, from the first round on.

The teacher is the network's own last exit while it trains. It starts the round as a weighted mean of other clients'
last heads, so they teach at the price of one head's traffic. It learns from its cross-entropy alone.

Published code counts k one lower: cross-entropy for e < k - 1, distillation for e < max(k, 1). So exit 1 is distilled
from the first round on, and exit m - 1 never sees a label (`legacy_offset`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.networks.base import EarlyExitNetwork, ExitOutputs
from common.objectives.base import Loss, StatelessObjective, exit_losses
from strategies.cafedistill.settings import CAFEDistillSettings

Teacher = Callable[[ExitOutputs], Tensor]


def last_exit(outputs: ExitOutputs) -> Tensor:
    """Return the last exit's logits `(B, C)`: the method's teacher."""
    return outputs.logits[-1]


def distillation(students: Sequence[Tensor], teacher: Tensor, temperature: float) -> Tensor:
    """Return `sum_e mean_b T^2 KL(p_teacher || p_e)`, a scalar; 0 without students.

    Args:
        students: logits `(B, C)` of each one.
        teacher: logits `(B, C)`; they get no gradient.
        temperature: T of the softmax.
    """
    target = F.log_softmax(teacher.detach() / temperature, dim=1)
    total = torch.zeros((), device=teacher.device)
    for z in students:
        student = F.log_softmax(z / temperature, dim=1)
        total = total + F.kl_div(student, target, reduction="batchmean", log_target=True)
    return total * temperature**2


@dataclass(frozen=True)
class Distillation(StatelessObjective):
    """Cross-entropies of the last exit and of the unlocked students, and the students' distillation."""

    settings: CAFEDistillSettings
    students: int  # k, the number of unlocked students, 0..m-1
    # Returns the teacher's logits (B, C) from the same pass; no gradient flows into them. It may mix in other heads on
    # the features of the exits (`across_depths`).
    teacher: Teacher = last_exit
    watch: Callable[[Sequence[Tensor]], None] = lambda features: None  # sees the features (B, width) of every exit

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        outputs = network.forward_exits(x)
        self.watch(outputs.features)
        losses = exit_losses(outputs.logits, y)
        means = losses.mean(1)
        labelled, distilled = self.sets(len(means))
        learning = labelled + 1 if self.settings.ce_division == "admitted" else len(means)
        ce = (means[:labelled].sum() + means[-1]) / learning
        kd = distillation(outputs.logits[:distilled], self.teacher(outputs), self.settings.temperature)
        return Loss(self.settings.ce_weight * ce + self.settings.kd_weight * kd, losses.detach())

    def sets(self, exits: int) -> tuple[int, int]:
        """Return how many shallow exits of `exits` get a cross-entropy, and how many are distilled."""
        students = min(self.students, exits - 1)
        if self.settings.legacy_offset:
            return max(students - 1, 0), min(max(students, 1), exits - 1)
        return students, students

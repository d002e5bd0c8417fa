"""The students' loss at every exit: the teacher's logits and its filters' activations.

    L = 1/J sum_j w_j (L_KD(Z_j, z_T, y) + beta * L_AT)

The mean over the J exits, and not the sum, keeps the loss's scale, and with it the learning rate's, whatever J is.
Beside it each student's own heads learn the labels on detached features, which leaves L and its gradients as they are.

Source: DistrEE (arXiv 2502.15735); both terms are NoNN's (arXiv 1907.11804, released code). The paper says that middle
exits weigh more, but not how much. Doubled weights (1, 1, 2, 2, 2, 1, 1) came less close to its accuracies per exit
than equal ones and lowered the last exit's accuracy (CIFAR-10, validation images): by default all weights are equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.classifier import OwnHeads
from strategies.distree.settings import DistrEESettings


def exit_weights(given: Sequence[float], num_exits: int) -> Tensor:
    """Return w (J,), mean 1: the given weights scaled, or equal ones if none are given.

    Raises `UserError` unless there is one weight per exit.
    """
    if given and len(given) != num_exits:
        raise UserError(
            f"distree.exit-weights names {len(given)} exits, the students have {num_exits}: give one weight per exit"
        )
    weights = torch.tensor(given, dtype=torch.float32) if given else torch.ones(num_exits)
    return weights / weights.mean()


def kd_loss(logits: Tensor, teacher: Tensor, labels: Tensor | None, alpha: float, temperature: float) -> Tensor:
    """Return 2 alpha T^2 / classes * KL(softmax(z_T / T) || softmax(z_S / T)) + (1 - alpha) * CE, a batch mean.

    Args:
        logits: the students', (B, classes).
        teacher: the teacher's, (B, classes).
        labels: (B,); None: unknown, then without CE.
        alpha: weight of the teacher (0.9).
        temperature: T (4).

    The division by the number of classes comes from the released code's default reduction.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    loss = (2 * alpha * temperature**2 / logits.shape[1]) * divergence
    return loss if labels is None else loss + (1 - alpha) * F.cross_entropy(logits, labels)


def activation_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return || s/|s| - t/|t| ||^2, a mean over the batch, of one student's features and filters (B, |P_k|).

    Each student is normalised by itself, so that its loss does not depend on the others. The released code normalises
    the concatenation, which needs joint training.
    """
    return (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).square().sum(1).mean()


def own_head_loss(
    own: OwnHeads, features: Mapping[int, Sequence[Tensor]], teacher_logits: Tensor, labels: Tensor | None
) -> Tensor:
    """Return the cross-entropy of the students' own heads, summed over students and exits, a batch mean.

    The value is 0: only its gradients count, so that the loss of a training stays the published one.

    Args:
        own: the heads of these students.
        features: student -> F_{k,j} (B, |P_k|) per exit; they get no gradient.
        teacher_logits: (B, classes), which stand in for unknown labels.
        labels: (B,), or None.
    """
    target = teacher_logits.float().softmax(1) if labels is None else labels
    total = teacher_logits.new_zeros((), dtype=torch.float32)
    for k, at_exits in features.items():
        for logits in own(k, [f.detach() for f in at_exits]):
            total = total + F.cross_entropy(logits.float(), target)
    return total - total.detach()


@dataclass(frozen=True)
class JointLoss:
    """The mean over exits of w_j (L_KD + beta * mean_k L_AT)."""

    weights: Tensor  # w (J,), mean 1
    alpha: float  # of `kd_loss`
    temperature: float  # of `kd_loss`
    beta: float  # weight of the activation transfer

    @classmethod
    def of(cls, settings: DistrEESettings, num_exits: int, device: torch.device) -> "JointLoss":
        """Return the loss of a run's settings; raises `UserError` unless there is one weight per exit."""
        weights = exit_weights(settings.exit_weights, num_exits).to(device)
        return cls(weights, settings.alpha, settings.temperature, settings.beta)

    def __call__(
        self,
        logits: Sequence[Tensor],
        features: Mapping[int, Sequence[Tensor]],
        teacher_logits: Tensor,
        teacher_blocks: Mapping[int, Tensor],
        labels: Tensor | None,
    ) -> Tensor:
        """Return the loss of a batch, a scalar.

        Args:
            logits: Z_j (B, classes) per exit.
            features: student -> F_{k,j} (B, |P_k|) per exit, of the students in training.
            teacher_logits: (B, classes).
            teacher_blocks: student -> its filters (B, |P_k|), of all students.
            labels: (B,), or None.
        """
        total = logits[0].new_zeros(())
        for j, z in enumerate(logits):
            distillation = kd_loss(z, teacher_logits, labels, self.alpha, self.temperature)
            transfer = sum(activation_transfer(f[j], teacher_blocks[k]) for k, f in features.items())
            total = total + self.weights[j] * (distillation + self.beta / len(teacher_blocks) * transfer)
        return total / len(logits)

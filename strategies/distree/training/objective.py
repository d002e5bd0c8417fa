"""What a student learns at every exit: the teacher's answers and its filters' activations.

    L = sum_j w_j (L_KD(Z_j, z_T, y) + beta * L_AT)

Source: DistrEE (arXiv 2502.15735); both terms are NoNN's (arXiv 1907.11804, released code). The paper says that middle
exits weigh more, not by how much. Doubled ones (1, 1, 2, 2, 2, 1, 1) came less close to its accuracies per exit than
equal ones, and the last exit lost by them (CIFAR-10, validation images): by default all weigh the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from strategies.distree.settings import DistrEESettings


def exit_weights(given: Sequence[float], num_exits: int) -> Tensor:
    """Return w (J,), mean 1: the given ones, or, without any, the same for all.

    Raises `UserError` when there is not one for each exit.
    """
    if given and len(given) != num_exits:
        raise UserError(f"distree.exit-weights names {len(given)} exits, the students have {num_exits}: give one each")
    weights = torch.tensor(given, dtype=torch.float32) if given else torch.ones(num_exits)
    return weights / weights.mean()


def kd_loss(logits: Tensor, teacher: Tensor, labels: Tensor | None, alpha: float, temperature: float) -> Tensor:
    """Return 2 alpha T^2 / classes * KL(softmax(z_T / T) || softmax(z_S / T)) + (1 - alpha) * CE, a batch mean.

    Args:
        logits: the students', (B, classes).
        teacher: the teacher's, (B, classes).
        labels: (B,), or None where nobody knows them: then without CE.
        alpha: share of the teacher (0.9).
        temperature: T (4).

    The division by the classes is what the released code's default reduction does.
    """
    divergence = F.kl_div(
        F.log_softmax(logits / temperature, dim=1), F.softmax(teacher / temperature, dim=1), reduction="batchmean"
    )
    loss = (2 * alpha * temperature**2 / logits.shape[1]) * divergence
    return loss if labels is None else loss + (1 - alpha) * F.cross_entropy(logits, labels)


def activation_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    """Return || s/|s| - t/|t| ||^2, a mean over the batch, of one student's features and filters (B, |P_k|).

    Each student is normalised by itself, so that its loss does not depend on the others: the released code normalises
    the concatenation, which only joint training could do.
    """
    return (F.normalize(student, dim=1) - F.normalize(teacher, dim=1)).square().sum(1).mean()


@dataclass(frozen=True)
class JointLoss:
    """The mean over exits of w_j (L_KD + beta * mean_k L_AT)."""

    weights: Tensor
    """w (J,), mean 1."""
    alpha: float
    """Of `kd_loss`."""
    temperature: float
    """Of `kd_loss`."""
    beta: float
    """Weight of the activation transfer."""

    @classmethod
    def of(cls, settings: DistrEESettings, num_exits: int, device: torch.device) -> "JointLoss":
        """Return what a run's settings ask for; raises what `exit_weights` does."""
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
            features: student -> F_{k,j} (B, |P_k|) per exit, of the students that learn.
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

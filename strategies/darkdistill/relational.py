"""Relational knowledge distillation (Park et al., CVPR 2019): students copy the geometry of a batch, not its values.

Teacher and student may have features of different widths, because only relations inside a batch are compared.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

COINCIDENT = 1e-12  # squared distance below which two samples are one point: no direction, no gradient


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the distance loss: smooth L1 between distances, each side divided by its mean positive distance.

    Args:
        student: features (S, D).
        teacher: features (S, D'), taken as constants.

    Returns:
        A scalar, the mean over all S x S pairs; 0 (with a gradient of 0) for fewer than two samples.
    """
    if len(student) < 2:
        return student.sum() * 0.0
    with torch.no_grad():
        target = _relative_distances(teacher)
    return F.smooth_l1_loss(_relative_distances(student), target)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the angle loss: smooth L1 between the cosines of the angles at every vertex of every triplet.

    Args:
        student: features (S, D).
        teacher: features (S, D'), taken as constants.

    Returns:
        A scalar, the mean over all S^3 triplets; 0 (with a gradient of 0) for fewer than three samples.
    """
    if len(student) < 3:
        return student.sum() * 0.0
    with torch.no_grad():
        target = _cosines(teacher)
    return F.smooth_l1_loss(_cosines(student), target)


def _differences(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return differences (S, S, D), lengths (S, S) and which pairs are apart (S, S) bool.

    Lengths of coincident pairs read 1, so that neither the root nor a division by them has an infinite gradient.
    """
    features = features.float()
    differences = features.unsqueeze(0) - features.unsqueeze(1)
    squared = differences.square().sum(dim=2)
    apart = squared > COINCIDENT
    return differences, torch.where(apart, squared, torch.ones_like(squared)).sqrt(), apart


def _relative_distances(features: Tensor) -> Tensor:
    _, lengths, apart = _differences(features)
    distances = lengths * apart
    # Without any pair apart all distances are 0 and so is the quotient.
    return distances * (apart.sum().clamp_min(1) / distances.sum().clamp_min(COINCIDENT))


def _cosines(features: Tensor) -> Tensor:
    differences, lengths, apart = _differences(features)
    directions = differences * (apart / lengths).unsqueeze(2)
    return torch.bmm(directions, directions.transpose(1, 2))

"""Teacher weights: how much each client learns from every other (CAFEDistill, Liu et al., arXiv 2601.10015, section 4).

Client i's weights trade its similarity to the teachers against closeness to uniform. With Sim_ij the similarities and
n the clients of the round:

    w_i = argmin over the simplex of  w'w + q'w,   q = -Sim_i / alpha - 2/n

The published code solves this with a QP solver. Completing the square gives ||w - (1/n + Sim_i / (2 alpha))||^2: a
Euclidean projection, which one sort solves exactly.
"""

import torch
from torch import Tensor


def project_to_simplex(v: Tensor) -> Tensor:
    """Return the closest vector with entries >= 0 that sum to 1, in float64.

    Sorting-based (Held, Wolfe and Crowder, Math. Programming 1974).

    Args:
        v: `(..., n)`; each vector along the last dimension is projected on its own.
    """
    v = v.double()
    v = v - v.amax(-1, keepdim=True)  # does not change the projection, and keeps precision if the entries are huge
    descending = v.sort(dim=-1, descending=True).values
    sizes = torch.arange(1, v.shape[-1] + 1, dtype=torch.float64, device=v.device)
    thresholds = (descending.cumsum(-1) - 1) / sizes  # if the `size` largest entries were the support
    support = (descending > thresholds).sum(-1, keepdim=True)  # true for a prefix
    return (v - thresholds.gather(-1, support - 1)).clamp(min=0)


def teacher_weights(similarities: Tensor, alpha: float) -> Tensor:
    """Return the weights `(n, n)` float64: row i weighs every client's last head for client i; rows sum to 1.

    Args:
        similarities: `(n, n)` in -1..1, with diagonal 1.
        alpha: above 0. Towards 0 a client uses its own head alone, towards infinity the plain mean.
    """
    similarities = similarities.double()
    return project_to_simplex(1 / len(similarities) + similarities / (2 * alpha))

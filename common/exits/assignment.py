"""Assign each sample of a batch to an exit: the exit policy of training.

Source: L2W-DEN (Han et al., ECCV 2022, figure 3); DarkDistill (Qu et al., KDD 2025) uses the same rule for
the batches of its generators and for exit matching.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.exits.policy import confidence

DEFAULT_P = 30.0


def exit_fractions(num_exits: int, p: float = DEFAULT_P) -> Tensor:
    """Return the target fraction of samples of every exit, `(E,)` float64 with sum 1.

    `q_e` is proportional to `(p / 20) ** e` for e = 1..E, so p = 20 is uniform and p = 30 sends 1.5 times as
    many samples to each deeper exit.
    """
    weights = (p / 20.0) ** torch.arange(1, num_exits + 1, dtype=torch.float64)
    return weights / weights.sum()


def exit_counts(num_samples: int, fractions: Tensor) -> list[int]:
    """Return how many of `num_samples` every exit takes: `floor(n * q_e)`, the last one all that are left."""
    # The small addend corrects products that rounding puts just below a whole number.
    counts = [math.floor(num_samples * fraction + 1e-9) for fraction in fractions.tolist()[:-1]]
    return [*counts, num_samples - sum(counts)]


def assign_exits(logits: Sequence[Tensor], p: float = DEFAULT_P) -> list[Tensor]:
    """Assign every sample of a batch to one exit.

    Exit 1 takes the samples that are most confident (max softmax) at exit 1, exit 2 the most confident at
    exit 2 among the rest, and the last exit all that are left. Equally confident samples are taken in batch order.

    Args:
        logits: one `(n, C)` tensor per exit, shallow to deep.
        p: skew of the target fractions, see `exit_fractions`.

    Returns:
        One int64 index tensor per exit, ascending, together a partition of `0..n-1`. The tensor of an exit that
        takes no sample is empty, so that position e is always exit e.
    """
    device = logits[0].device
    num_samples = logits[0].shape[0]
    counts = exit_counts(num_samples, exit_fractions(len(logits), p))
    remaining = torch.arange(num_samples, device=device)
    assigned: list[Tensor] = []
    for exit_logits, count in zip(logits[:-1], counts[:-1], strict=True):
        scores = confidence(exit_logits.detach()[remaining])
        order = torch.sort(scores, descending=True, stable=True).indices
        assigned.append(remaining[order[:count]].sort().values)
        remaining = remaining[order[count:]].sort().values
    return [*assigned, remaining]

"""Difficulties as clients report them, the server's pool of them per tier, and draws from the pool.

Difficulty is the cross-entropy (nats) of a sample at the first exit. A client reports it either as (difficulty, label)
pairs, one per sample, as published (DarkDistill, KDD 2025), or as a sketch: a histogram of losses per label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from common.weights.folding import MAGNITUDE

LINEAR_BELOW = 0.05  # nats; bins have equal widths well below this loss and equal ratios well above


@dataclass(frozen=True)
class DifficultyPairs:
    """Difficulties and labels of the same samples."""

    difficulty: Tensor  # (N,) float32, nats
    labels: Tensor  # (N,) int64

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def checked(cls, difficulty: Tensor, labels: Tensor, num_classes: int) -> Self:
        """Return received pairs; raises ValueError unless they are in range and of the same length."""
        if difficulty.ndim != 1 or difficulty.shape != labels.shape or labels.dtype != torch.int64:
            shapes = f"difficulties {tuple(difficulty.shape)} and labels {tuple(labels.shape)} {labels.dtype}"
            raise ValueError(f"{shapes} must be vectors of the same length, labels as int64")
        difficulty = difficulty.float()
        if not bool(((difficulty >= 0) & (difficulty < MAGNITUDE)).all()):  # false for NaN, too
            raise ValueError(f"a difficulty is negative, not finite or above {MAGNITUDE:g}")
        if bool(((labels < 0) | (labels >= num_classes)).any()):
            raise ValueError(f"a label lies outside 0..{num_classes - 1}")
        return cls(difficulty, labels)

    @classmethod
    def pool(cls, parts: Sequence[Self]) -> Self:
        """Concatenate the pairs of a tier's clients; the caller gives them in client order."""
        return cls(torch.cat([p.difficulty for p in parts]), torch.cat([p.labels for p in parts]))

    def sample(self, count: int, rng: torch.Generator) -> "DifficultyPairs":
        """Draw `count` pairs uniformly with replacement; each difficulty keeps its label."""
        if len(self) == 0:
            raise ValueError("cannot draw from an empty pool of difficulties")
        chosen = torch.randint(len(self), (count,), generator=rng, device=rng.device).to(self.labels.device)
        return DifficultyPairs(self.difficulty[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> "DifficultyPairs":
        """Return the pairs on `device`."""
        return DifficultyPairs(self.difficulty.to(device), self.labels.to(device))


@dataclass(frozen=True)
class DifficultySketch:
    """A histogram of losses per label.

    What `epsilon` covers. Each difficulty must depend on its own sample and on the received weights alone, so a client
    measures all of them before its first step (`client.received_difficulties`). Then adding or removing one training
    sample changes one count by one, the histogram has L1 sensitivity 1, and two-sided geometric noise (the Laplace
    mechanism on integers, Ghosh et al., STOC 2009, which has none of the floating-point leaks of continuous noise)
    makes this round's sketch, given these weights, epsilon-differentially private per sample. What it does not cover:
    every sketch of a client spends epsilon again, so k rounds cost k * epsilon; the trained weights, the number of
    samples and the mean loss of training, sent beside it, are not protected by it; and the noise protects only if its
    seed is secret, so the generator passed to `build` must be seeded from the client's own entropy whenever
    epsilon > 0, never from the run's seed, which the server has.
    The noise also fills empty bins: with small epsilon and few samples per label, most draws are noise.
    """

    counts: Tensor  # (classes, bins) float64
    clip: float  # nats; the bins span [0, clip]

    @classmethod
    def build(
        cls,
        pairs: DifficultyPairs,
        num_classes: int,
        *,
        bins: int,
        clip: float,
        epsilon: float,
        rng: torch.Generator,
    ) -> Self:
        """Count pairs per label and loss bin; losses above `clip` nats fall in the last bin.

        `epsilon` = 0 adds no noise and leaves `rng` untouched.
        """
        inner_edges = bin_edges(bins, clip)[1:-1]
        bin_of = torch.bucketize(pairs.difficulty.double().cpu(), inner_edges, right=True)
        cells = pairs.labels.cpu() * bins + bin_of
        counts = torch.bincount(cells, minlength=num_classes * bins).double().view(num_classes, bins)
        if epsilon > 0:
            counts = counts + _two_sided_geometric(counts.shape, epsilon, rng)
        return cls(counts, clip)

    @classmethod
    def from_array(cls, values: Tensor, num_classes: int, *, bins: int, clip: float) -> Self:
        """Return a received sketch; raises ValueError unless `values` are classes * bins finite numbers."""
        if values.shape != (num_classes * bins,):
            raise ValueError(f"a sketch has shape {tuple(values.shape)}, expected {num_classes} x {bins} values")
        if not bool(torch.isfinite(values).all()):
            raise ValueError("a count of the sketch is not finite")
        return cls(values.double().view(num_classes, bins), clip)

    def to_array(self) -> Tensor:
        """Return the counts as one flat float32 vector (classes * bins,), exact up to 2^24 samples a bin."""
        return self.counts.float().flatten()

    @classmethod
    def pool(cls, parts: Sequence[Self]) -> Self:
        """Add the counts of a tier's clients. Negative noisy counts are kept, so that the noise averages out."""
        return cls(torch.stack([p.counts for p in parts]).sum(dim=0), parts[0].clip)

    def __len__(self) -> int:
        """Return the number of samples that the sketch counts, rounded (noisy counts below zero count as zero)."""
        return round(self.counts.clamp_min(0).sum().item())

    def sample(self, count: int, rng: torch.Generator) -> DifficultyPairs:
        """Draw a label and a bin jointly, then a loss evenly inside the bin (the interpolated inverse CDF)."""
        if len(self) == 0:
            raise ValueError("cannot draw from an empty sketch of difficulties")
        bins = self.counts.shape[1]
        weights = self.counts.clamp_min(0).flatten().to(rng.device)
        cells = torch.multinomial(weights, count, replacement=True, generator=rng)
        position = torch.rand(count, generator=rng, device=rng.device, dtype=torch.float64)
        edges = bin_edges(bins, self.clip).to(rng.device)
        lower, upper = edges[cells % bins], edges[cells % bins + 1]
        difficulty = lower + position * (upper - lower)
        return DifficultyPairs(difficulty.float(), torch.div(cells, bins, rounding_mode="floor"))


DifficultyPool = DifficultyPairs | DifficultySketch


def pool(parts: Sequence[DifficultyPool]) -> DifficultyPool:
    """Pool the reports of a tier's clients, in client order; raises ValueError if pairs and sketches are mixed."""
    pairs = [part for part in parts if isinstance(part, DifficultyPairs)]
    sketches = [part for part in parts if isinstance(part, DifficultySketch)]
    if pairs and sketches:
        raise ValueError("some clients sent pairs and others sketches")
    return DifficultyPairs.pool(pairs) if pairs else DifficultySketch.pool(sketches)


def bin_edges(bins: int, clip: float) -> Tensor:
    """Return `bins` + 1 edges (float64) from 0 to `clip` nats: even near 0, then with a constant ratio.

    Losses of a trained exit crowd near 0 and have a long tail, so bins widen with the loss.
    """
    position = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    return LINEAR_BELOW * ((1 + clip / LINEAR_BELOW) ** position - 1)


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Return Spearman's rho of two vectors (N,), ties at their average rank; 0.0 if one of them is constant."""
    ranks = torch.stack([_average_ranks(first), _average_ranks(second)])
    centred = ranks - ranks.mean(dim=1, keepdim=True)
    scale = centred.square().sum(dim=1).prod().sqrt()
    return float((centred[0] * centred[1]).sum() / scale) if scale > 0 else 0.0


def _average_ranks(values: Tensor) -> Tensor:
    _, group, sizes = torch.unique(values.detach().cpu(), return_inverse=True, return_counts=True)
    return (sizes.cumsum(0) - (sizes - 1) / 2).double()[group]


def _two_sided_geometric(shape: torch.Size, epsilon: float, rng: torch.Generator) -> Tensor:
    """Return integers with P(k) proportional to exp(-epsilon |k|), as float64."""
    success = 1 - torch.exp(torch.tensor(-epsilon, dtype=torch.float64)).item()
    draws = torch.empty((2, *shape), dtype=torch.float64).geometric_(success, generator=rng)
    return draws[0] - draws[1]

"""Fit exit thresholds on validation logits, never on test data."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.exits.assignment import exit_counts
from common.exits.policy import ThresholdPolicy, confidence

# p = 0.05..1.95 step 0.05 (MSDNet, Huang et al., ICLR 2018; DarkDistill, Qu et al., KDD 2025).
BUDGET_SWEEP = tuple(step / 20 for step in range(1, 40))


def budget_fractions(num_exits: int, p: float) -> Tensor:
    """Return the fraction of samples to leave at each exit, `(E,)` float64, sum 1.

    Exit e = 1..E gets a share proportional to `p ** (4 e)`: p < 1 favours shallow exits, p = 1 is uniform,
    p > 1 favours deep ones.
    """
    weights = p ** (4.0 * torch.arange(1, num_exits + 1, dtype=torch.float64))
    return weights / weights.sum()


def fit_scores(scores: Tensor, fractions: Tensor, *, strict: bool = False) -> tuple[float, ...]:
    """Return the thresholds, one per exit but the last, that let the given fractions of the samples leave.

    Exit by exit, the threshold is the score of the `floor(N * q_e)`-th best sample among those that have not left
    (MSDNet's budgeted batch classification). Samples with exactly that score leave together, so ties let more leave
    than asked, and deeper exits get what remains.

    Args:
        scores: `(E, N)`, larger = leaves earlier.
        fractions: `(E,)`, sum 1.
        strict: samples leave only above the threshold, not at it; the threshold is then the float64 just below that
            score, and scores must be float64 as well.
    """
    staying = torch.ones(scores.shape[1], dtype=torch.bool, device=scores.device)
    thresholds: list[float] = []
    for exit_scores, count in zip(scores[:-1], exit_counts(scores.shape[1], fractions)[:-1], strict=True):
        candidates = exit_scores[staying].sort(descending=True).values
        leaving = min(count, len(candidates))
        if not leaving:
            thresholds.append(math.inf)
            continue
        lowest = candidates[leaving - 1].item()
        thresholds.append(math.nextafter(lowest, -math.inf) if strict else lowest)
        staying &= exit_scores < lowest
    return tuple(thresholds)


def fit_thresholds(validation_logits: Tensor, fractions: Tensor, measure: str = "softmax") -> ThresholdPolicy:
    """Return the policy by which the given fractions of the validation samples leave at each exit, see `fit_scores`.

    Args:
        validation_logits: `(E, N, C)`.
        fractions: `(E,)`, sum 1.
        measure: see `confidence`.
    """
    return ThresholdPolicy(fit_scores(confidence(validation_logits, measure), fractions), measure)


def calibrate(
    validation_logits: Tensor,
    labels: Tensor,
    costs: Sequence[float],
    max_accuracy_loss: float,
    measure: str = "softmax",
) -> ThresholdPolicy:
    """Return the cheapest policy of the sweep whose validation accuracy is close enough to the last exit's.

    Args:
        validation_logits: `(E, N, C)`.
        labels: `(N,)`.
        costs: cost of a sample that leaves at each exit, `E` numbers (MACs, or any other unit).
        max_accuracy_loss: allowed loss against the last exit's validation accuracy (0.01 = one point).
        measure: see `confidence`.

    Returns:
        Of equally cheap policies the most accurate one; if none is accurate enough, the one by which all samples go
        to the last exit.
    """
    num_exits, num_samples, _ = validation_logits.shape
    cost = torch.tensor(costs, dtype=torch.float64)
    needed = (validation_logits[-1].argmax(-1) == labels).sum().item() - max_accuracy_loss * num_samples - 1e-9
    best = ThresholdPolicy((math.inf,) * (num_exits - 1), measure)
    best_key = (math.inf, 0)
    for p in BUDGET_SWEEP:
        policy = fit_thresholds(validation_logits, budget_fractions(num_exits, p), measure)
        exits = policy.exits(validation_logits)
        correct = int((exit_predictions(validation_logits, exits) == labels).sum())
        key = (cost[exits.cpu()].mean().item(), -correct)
        if correct >= needed and key < best_key:
            best, best_key = policy, key
    return best


def exit_predictions(logits: Tensor, exits: Tensor) -> Tensor:
    """Return every sample's class `(N,)` at its exit `(N,)`, from all exits' logits `(E, N, C)`."""
    return logits[exits, torch.arange(logits.shape[1], device=logits.device)].argmax(-1)

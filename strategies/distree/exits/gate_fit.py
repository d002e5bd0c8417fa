"""Fit gates on validation samples, and score these samples by gates that have not seen them.

A gate looks better on the samples that it was fitted on than on others, so thresholds chosen on these would let too
many leave. Therefore it is fitted FOLDS + 1 times: without each fold in turn, to score that fold, and on all samples,
which is the gate that serves.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.seeding import generator

FOLDS = 5
LEAST = 100  # validation samples that a gate of 16 weights needs


@dataclass(frozen=True)
class FittedGate:
    """The gate of one student, and the scores to choose its thresholds on."""

    weights: tuple[tuple[float, ...], ...]  # see `Gate`
    scores: Tensor  # float64 (J, N), of each sample by a gate that was fitted without it


def check_samples(count: int) -> None:
    """Raise `UserError` if there are too few validation samples for a gate."""
    if count < LEAST:
        raise UserError(
            f"the exit rule gate is fitted on {LEAST} or more validation images, there are {count}: "
            "raise data.validation or data.limit, or choose another distree.exit-rule"
        )


def fit_gate(x: Tensor, right: Tensor) -> FittedGate:
    """Return the gate of one student.

    Args:
        x: the student's numbers, float64 (J, N, n), see `gate_numbers`.
        right: whether the common answer at each exit is right, bool (J, N).
    """
    scores = torch.empty(x.shape[:2], dtype=torch.float64)
    for fold in torch.randperm(x.shape[1], generator=generator("gate folds", 1)).chunk(FOLDS):
        others = torch.ones(x.shape[1], dtype=torch.bool)
        others[fold] = False
        scores[:, fold] = log_odds(x[:, fold], logistic(x[:, others], right[:, others]))
    return FittedGate(tuple(map(tuple, logistic(x, right).tolist())), scores)


def log_odds(x: Tensor, weights: Tensor) -> Tensor:
    """Return the log-odds (J, N) of numbers (J, N, n) by weights (J, n + 1), the bias last."""
    return (x @ weights[:, :-1, None]).squeeze(2) + weights[:, -1:]


def logistic(x: Tensor, right: Tensor) -> Tensor:
    """Return the weights (J, n + 1) of J logistic regressions, the bias last; arguments as of `fit_gate`.

    They minimise the sum of the log losses plus half the squared weights of the standardised numbers.
    """
    mean, spread = x.mean(1), x.std(1, correction=0).clamp_min(1e-6)  # a constant number gets no weight
    standard, target = (x - mean[:, None]) / spread[:, None], right.double()
    weights = torch.zeros(len(x), x.shape[2] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        losses = F.binary_cross_entropy_with_logits(log_odds(standard, weights), target, reduction="sum")
        total = losses + weights[:, :-1].square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    slopes = weights.detach()[:, :-1] / spread
    return torch.cat([slopes, weights.detach()[:, -1:] - (slopes * mean).sum(1, keepdim=True)], dim=1)

"""Any-time and budgeted evaluation: one forward pass per batch serves all exits.

Source: MSDNet (Huang et al., ICLR 2018, section 5) for the two settings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.exits.calibration import BUDGET_SWEEP, budget_fractions, exit_predictions, fit_thresholds


@dataclass(frozen=True)
class BudgetPoint:
    """One point of the accuracy-cost curve."""

    p: float  # position in the sweep, see `budget_fractions`
    thresholds: tuple[float, ...]  # fitted on validation, one per exit but the last
    mean_macs: float  # mean cost of a test sample, in the unit of the given exit costs
    accuracy: float  # on the test samples, in [0, 1]
    exit_histogram: tuple[int, ...]  # number of test samples that left at each exit
    validation_accuracy: float  # with the same thresholds, in [0, 1]; choose a point by this one


@torch.inference_mode()
def collect_logits(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the logits of all exits, float32 `(E, N, C)`, and the labels `(N,)`, both on the CPU.

    The network computes in eval mode; its training mode is restored afterwards.

    Args:
        network: any part of an early-exit network, or another module that returns logits (B, C) per exit.
        batches: normalised images `(B, C, H, W)` and labels `(B,)`, on any device.

    Raises:
        UserError: the batches hold no samples.
    """
    device = next(network.parameters()).device
    was_training = network.training
    logits: list[Tensor] = []
    labels: list[Tensor] = []
    network.eval()
    try:
        for x, y in batches:
            logits.append(torch.stack(network(x.to(device))).float())
            labels.append(y)
    finally:
        network.train(was_training)
    if not logits:
        raise UserError("no samples to evaluate: give every client some validation and test data")
    # one copy at the end: a GPU does not wait after each batch
    return torch.cat(logits, dim=1).cpu(), torch.cat(labels).cpu()


def correct_counts(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many samples each exit gets right, int64 `(E,)`, from logits `(E, N, C)` and labels `(N,)`.

    Whole numbers, so that the counts of many clients add up exactly in any order.
    """
    return (logits.argmax(-1) == labels).sum(1)


def anytime_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each exit's accuracy on all samples, float64 `(E,)`, from logits `(E, N, C)`, labels `(N,)`."""
    return correct_counts(logits, labels).double() / len(labels)


def budgeted_curve(
    validation_logits: Tensor,
    validation_labels: Tensor,
    test_logits: Tensor,
    test_labels: Tensor,
    exit_macs: Sequence[float],
    *,
    measure: str = "softmax",
) -> list[BudgetPoint]:
    """Return the budgeted-classification curve: thresholds fitted on validation and applied to test.

    Args:
        validation_logits: `(E, N, C)`.
        validation_labels: `(N,)`.
        test_logits: `(E, M, C)`; nothing is chosen on them.
        test_labels: `(M,)`.
        exit_macs: MACs of a sample that leaves at each exit, `E` numbers.
        measure: see `confidence`.

    Returns:
        One point per p of `BUDGET_SWEEP`, from cheap to expensive.
    """
    num_exits = validation_logits.shape[0]
    macs = torch.tensor(exit_macs, dtype=torch.float64)
    points: list[BudgetPoint] = []
    for p in BUDGET_SWEEP:
        policy = fit_thresholds(validation_logits, budget_fractions(num_exits, p), measure)
        validation_hits = exit_predictions(validation_logits, policy.exits(validation_logits)) == validation_labels
        exits = policy.exits(test_logits)
        hits = exit_predictions(test_logits, exits) == test_labels
        points.append(
            BudgetPoint(
                p=p,
                thresholds=policy.thresholds,
                mean_macs=macs[exits].mean().item(),
                accuracy=hits.double().mean().item(),
                exit_histogram=tuple(torch.bincount(exits, minlength=num_exits).tolist()),
                validation_accuracy=validation_hits.double().mean().item(),
            )
        )
    return points

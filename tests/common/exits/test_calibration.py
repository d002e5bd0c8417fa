import math

import pytest
import torch

from common.exits import (
    BUDGET_SWEEP,
    ThresholdPolicy,
    budget_fractions,
    calibrate,
    exit_counts,
    exit_predictions,
    fit_scores,
    fit_thresholds,
)


def random_logits(num_exits: int = 4, samples: int = 500, classes: int = 10, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(num_exits, samples, classes, generator=torch.Generator().manual_seed(seed))


def test_budget_sweep_and_fractions() -> None:
    assert len(BUDGET_SWEEP) == 39
    assert BUDGET_SWEEP[0] == 0.05
    assert BUDGET_SWEEP[-1] == 1.95
    torch.testing.assert_close(budget_fractions(3, 1.0), torch.full((3,), 1 / 3, dtype=torch.float64))
    # p = 0.5: p^4 = 1/16, so 256 : 16 : 1.
    torch.testing.assert_close(budget_fractions(3, 0.5), torch.tensor([256, 16, 1], dtype=torch.float64) / 273)


@pytest.mark.parametrize("measure", ["softmax", "raw", "entropy"])
@pytest.mark.parametrize("p", [0.5, 0.9, 1.0, 1.3])
def test_fitted_thresholds_give_the_target_fractions(p: float, measure: str) -> None:
    logits = random_logits()
    fractions = budget_fractions(4, p)
    exits = fit_thresholds(logits, fractions, measure).exits(logits)
    assert torch.bincount(exits, minlength=4).tolist() == exit_counts(500, fractions)


def test_thresholds_match_a_result_by_hand() -> None:
    # Half leaves at exit 1 (samples 0, 1), a quarter of all at exit 2: the more confident of 2 and 3 there is 3.
    raw = torch.tensor([[0.9, 0.8, 0.4, 0.1], [0.99, 0.98, 0.3, 0.6], [0.0, 0.0, 0.0, 0.0]])
    logits = torch.stack([raw, torch.full_like(raw, -1.0)], dim=-1)
    policy = fit_thresholds(logits, torch.tensor([0.5, 0.25, 0.25]), "raw")
    assert policy.thresholds == (raw[0, 1].item(), raw[1, 3].item())
    assert policy.exits(logits).tolist() == [0, 0, 2, 1]


def test_fraction_below_one_sample_lets_none_leave() -> None:
    policy = fit_thresholds(random_logits(2, 10), torch.tensor([0.05, 0.95]))
    assert policy.thresholds == (math.inf,)


def test_ties_leave_together_and_later_exits_may_be_empty() -> None:
    logits = torch.zeros(3, 6, 2)
    policy = fit_thresholds(logits, torch.tensor([0.5, 0.25, 0.25]))
    assert policy.thresholds == (0.5, math.inf)
    assert policy.exits(logits).tolist() == [0] * 6


def test_one_exit_has_no_thresholds() -> None:
    assert fit_thresholds(random_logits(1), torch.ones(1)) == ThresholdPolicy(())


def test_strict_thresholds_must_be_exceeded() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.8, 0.1], [9.0, 9.0, 9.0, 2.0], [0.0] * 4], dtype=torch.float64)
    fractions = torch.tensor([0.5, 0.25, 0.25])
    # Both samples with 0.8 leave, on the threshold or just above it.
    assert fit_scores(scores, fractions) == (0.8, 2.0)
    strict = fit_scores(scores, fractions, strict=True)
    assert strict == (math.nextafter(0.8, 0.0), math.nextafter(2.0, 0.0))
    assert (scores[0] > strict[0]).tolist() == [True, True, True, False]


def test_infinite_scores_stay_at_a_fraction_of_zero() -> None:
    scores = torch.tensor([[math.inf, 1.0], [math.inf, 1.0], [0.0, 0.0]], dtype=torch.float64)
    thresholds = fit_scores(scores, torch.tensor([0.0, 0.5, 0.5]), strict=True)
    assert thresholds[0] == math.inf
    assert (scores[1] > thresholds[1]).tolist() == [True, False]


def graded_logits() -> tuple[torch.Tensor, torch.Tensor]:
    """Return 100 samples, 2 exits: exit 1 is right on its 60 most confident samples, exit 2 on 90."""
    labels = torch.zeros(100, dtype=torch.int64)
    sure = torch.linspace(6.0, 1.0, 100)
    first = torch.stack([sure, -sure], dim=1)
    first[60:] = first[60:].flip(1)
    last = torch.tensor([[3.0, -3.0]]).repeat(100, 1)
    last[90:] = last[90:].flip(1)
    return torch.stack([first, last]), labels


def test_calibrate_takes_the_cheapest_point_without_loss() -> None:
    logits, labels = graded_logits()
    policy = calibrate(logits, labels, [1.0, 4.0], max_accuracy_loss=0.0)
    exits = policy.exits(logits)
    correct = int((exit_predictions(logits, exits) == labels).sum())
    # p = 0.9 sends floor(100 / (1 + 0.9^4)) = 60 samples through exit 1, all correct; p = 0.85 would send 65.
    assert torch.bincount(exits).tolist() == [60, 40]
    assert correct == 90


def test_calibrate_uses_the_allowed_loss() -> None:
    logits, labels = graded_logits()
    # p = 0.85 sends 65 samples, 5 of them wrong; p = 0.8 would send 70 and lose 10.
    policy = calibrate(logits, labels, [1.0, 4.0], max_accuracy_loss=0.05)
    assert torch.bincount(policy.exits(logits)).tolist() == [65, 35]


def test_calibrate_falls_back_to_the_last_exit() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    right = torch.tensor([1.0, 0.0]).repeat(50, 1)
    policy = calibrate(torch.stack([right.flip(1), right]), labels, [1.0, 2.0], max_accuracy_loss=0.0)
    assert policy == ThresholdPolicy((math.inf,))


def test_calibrate_prefers_accuracy_among_equal_costs() -> None:
    logits, labels = graded_logits()
    policy = calibrate(logits, labels, [1.0, 1.0], max_accuracy_loss=1.0)
    exits = policy.exits(logits)
    assert int((exit_predictions(logits, exits) == labels).sum()) == 90


def test_calibrate_with_one_exit() -> None:
    logits, labels = graded_logits()
    assert calibrate(logits[:1], labels, [1.0], max_accuracy_loss=0.0) == ThresholdPolicy(())

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from common.errors import UserError
from strategies.distree.exits.gate_fit import FOLDS, check_samples, fit_gate, log_odds, logistic


def test_weights_of_a_separable_set() -> None:
    """Four samples, -3 and -1 wrong, 1 and 3 right: their mean is 0, their spread the root of 5.

    The slope s of the standardised numbers minimises 2 log(1 + e^(-s/r)) + 2 log(1 + e^(-3s/r)) + s^2 / 2, r^2 = 5.
    """
    x = torch.tensor([-3.0, -1, 1, 3], dtype=torch.float64)[None, :, None]
    ((slope, bias),) = logistic(x, x[..., 0] > 0).tolist()
    assert slope * math.sqrt(5) == pytest.approx(0.944073, abs=1e-5)
    assert bias == pytest.approx(0.0, abs=1e-6)


def test_exits_are_fitted_apart_and_like_another_implementation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 300, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 20, 0.1]) + 5
    right = torch.stack([x[0, :, 0] + torch.randn(300, generator=generator) > 5, x[1, :, 2] > 5.05])
    found = logistic(x, right)
    for j in range(2):
        scaled = StandardScaler().fit_transform(x[j].numpy())
        other = LogisticRegression(tol=1e-10, max_iter=2000).fit(scaled, right[j].numpy()).decision_function(scaled)
        torch.testing.assert_close(log_odds(x, found)[j], torch.from_numpy(other), atol=1e-4, rtol=1e-4)
    assert torch.allclose(logistic(x[:1], right[:1]), found[:1], atol=1e-5)


def test_constant_number_gets_no_weight_and_one_answer_a_finite_bias() -> None:
    x = torch.stack([torch.linspace(0, 1, 50), torch.full((50,), 0.3)], -1).double()[None]
    assert logistic(x, x[..., 0] > 0.5)[0, 1] == pytest.approx(0.0, abs=1e-6)
    always = logistic(x, torch.ones(1, 50, dtype=torch.bool))
    assert always.isfinite().all()
    assert log_odds(x, always).min() > 5


def test_a_sample_is_scored_by_a_gate_without_it() -> None:
    """A gate that saw its samples would tell noise apart: with as many numbers as samples it separates everything."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 100, 60, generator=generator, dtype=torch.float64)
    noise = torch.rand(1, 100, generator=generator) > 0.5
    fitted = fit_gate(x, noise)
    seen = log_odds(x, torch.tensor(fitted.weights, dtype=torch.float64))
    assert ((seen > 0) == noise).double().mean() > 0.95
    assert 0.35 < ((fitted.scores > 0) == noise).double().mean() < 0.65
    real = fit_gate(x, x[..., 0] > 0)
    assert ((real.scores > 0) == (x[..., 0] > 0)).double().mean() > 0.75


def test_changing_a_sample_changes_no_score_of_its_fold() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 100, 2, generator=generator, dtype=torch.float64)
    right = x[..., 0] + torch.randn(1, 100, generator=generator) > 0
    before, changed = fit_gate(x, right), right.clone()
    changed[0, 7] = ~changed[0, 7]
    after = fit_gate(x, changed)
    assert (after.scores == before.scores).sum() == 100 / FOLDS
    assert after.scores[0, 7] == before.scores[0, 7]
    assert after.weights != before.weights
    assert fit_gate(x, right).weights == before.weights


def test_too_few_samples_are_refused() -> None:
    check_samples(100)
    with pytest.raises(UserError, match="100 or more validation images, there are 99"):
        check_samples(99)

from itertools import combinations

import pytest
import torch

from strategies.cafedistill.matching import project_to_simplex, teacher_weights


def uniform_similarity(n: int, off_diagonal: float) -> torch.Tensor:
    return torch.full((n, n), off_diagonal, dtype=torch.float64).fill_diagonal_(1.0)


def random_similarities(n: int, seed: int) -> torch.Tensor:
    upper = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).sub(1).triu(1)
    return upper + upper.T + torch.eye(n, dtype=torch.float64)


def solve_by_supports(similarities: torch.Tensor, alpha: float) -> torch.Tensor:
    """Minimise w'w + q'w on the simplex by trying every support: on one, w = -q/2 + a constant."""
    n = len(similarities)
    q = -similarities / alpha - 2 / n
    best = None
    for size in range(1, n + 1):
        for support in map(list, combinations(range(n), size)):
            w = torch.zeros(n, dtype=torch.float64)
            w[support] = -q[support] / 2 + (1 + q[support].sum() / 2) / size
            value = w @ w + q @ w
            if w.min() >= 0 and (best is None or value < best[0]):
                best = (value, w)
    assert best is not None
    return best[1]


@pytest.mark.parametrize(
    ("v", "expected"),
    [
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([1.0, 1.0], [0.5, 0.5]),
        ([2.0, 0.0], [1.0, 0.0]),
        ([1e17, 0.0], [1.0, 0.0]),
        ([0.5, 0.25, -3.0], [0.625, 0.375, 0.0]),
        ([-7.0], [1.0]),
        ([-1.0, -1.5, -1.0, -9.0], [0.5, 0.0, 0.5, 0.0]),
    ],
)
def test_project_to_simplex_equals_values_by_hand(v, expected):
    result = project_to_simplex(torch.tensor(v))
    assert result.dtype == torch.float64
    assert result.tolist() == pytest.approx(expected, abs=1e-7)


def test_project_to_simplex_projects_each_row():
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(project_to_simplex(rows), torch.stack([project_to_simplex(row) for row in rows]))


@pytest.mark.parametrize(
    ("similarity", "by_alpha"),
    [
        (0.0, {0.15: 1.000, 0.6: 0.850, 1: 0.550, 5: 0.190}),
        (0.3, {0.15: 1.000, 0.6: 0.625, 1: 0.415, 5: 0.163}),
        (0.6, {0.15: 1.000, 0.6: 0.400, 1: 0.280, 5: 0.136}),
        (0.9, {0.15: 0.400, 0.6: 0.175, 1: 0.145, 5: 0.109}),
    ],
)
def test_teacher_weights_of_ten_equally_similar_clients(similarity, by_alpha):
    for alpha, expected in by_alpha.items():
        weights = teacher_weights(uniform_similarity(10, similarity), alpha)
        assert weights.diagonal().tolist() == pytest.approx([expected] * 10, abs=1e-12)
        assert weights[0, 1:].tolist() == pytest.approx([(1 - expected) / 9] * 9, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("alpha", [0.05, 0.6, 3.0])
def test_teacher_weights_solve_the_quadratic_programme(n, alpha):
    similarities = random_similarities(n, seed=n)
    expected = torch.stack([solve_by_supports(row, alpha) for row in similarities])
    torch.testing.assert_close(teacher_weights(similarities, alpha), expected, rtol=0, atol=1e-12)


def test_teacher_weights_at_the_limits_of_alpha():
    similarities = random_similarities(8, seed=1)
    assert torch.equal(teacher_weights(similarities, 1e-12), torch.eye(8, dtype=torch.float64))
    uniform = torch.full((8, 8), 1 / 8, dtype=torch.float64)
    torch.testing.assert_close(teacher_weights(similarities, 1e12), uniform, rtol=0, atol=1e-11)


def test_teacher_weights_are_distributions():
    for alpha in (1e-9, 0.15, 0.6, 1e3):
        weights = teacher_weights(random_similarities(100, seed=2), alpha)
        assert weights.min() >= 0
        assert (weights.sum(1) - 1).abs().max() < 1e-12


def test_teacher_weights_do_not_depend_on_client_order():
    similarities = random_similarities(20, seed=3)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(4))
    shuffled = teacher_weights(similarities[order][:, order], 0.6)
    assert torch.equal(shuffled, teacher_weights(similarities, 0.6)[order][:, order])

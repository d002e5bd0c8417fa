import math

import pytest
import torch

from strategies.darkdistill.matching import (
    LearnedDistance,
    difficulty_distance,
    exit_difficulty,
    make_matcher,
    match,
    matching_weights,
)
from strategies.darkdistill.settings import DarkDistillSettings

DIFFICULTY = torch.tensor([0.0, 1.0, 2.0, 3.0])
EASY, NONE, HARD = torch.tensor([0, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([2, 3])


def test_exit_difficulty_uses_the_population_variance() -> None:
    exits = exit_difficulty(DIFFICULTY, [EASY, NONE, HARD[:1]])
    assert exits.mean.tolist() == [0.5, 0.0, 2.0]
    assert exits.variance.tolist() == [0.25, 0.0, 0.0]
    assert exits.present.tolist() == [True, False, True]


def test_difficulty_distance_is_in_standard_deviations() -> None:
    distances = difficulty_distance(DIFFICULTY[HARD], exit_difficulty(DIFFICULTY, [EASY, HARD]))
    torch.testing.assert_close(distances, torch.tensor([[3.0, 1.0], [5.0, 1.0]]), rtol=1e-5, atol=1e-5)


def test_matching_weights_equal_values_by_hand() -> None:
    # Rows 3:1 and 5:1 normalise to 3/4:1/4 and 5/6:1/6, their mean is 19/24:5/24.
    weights = match(DIFFICULTY, HARD, [EASY, HARD], DarkDistillSettings(temperature=0.5))
    assert weights[0].item() == pytest.approx(1 / (1 + math.exp(14 / 24 / 0.5)), rel=1e-4)
    assert weights.sum().item() == pytest.approx(1)


def test_batch_size_does_not_sharpen_the_weights() -> None:
    distances = torch.tensor([[1.0, 3.0]])
    present = torch.tensor([True, True])
    one = matching_weights(distances, present, temperature=0.1)
    many = matching_weights(distances.expand(32, 2), present, temperature=0.1)
    torch.testing.assert_close(one, many)


@pytest.mark.parametrize("matcher", ["distance", "learned", "hard"])
def test_exit_without_samples_has_no_weight(matcher: str) -> None:
    settings = DarkDistillSettings(matcher=matcher)
    learned = make_matcher(settings, seed=0)
    weights = match(DIFFICULTY, HARD, [EASY, NONE, HARD], settings, learned)
    torch.testing.assert_close(weights[[0, 2]], match(DIFFICULTY, HARD, [EASY, HARD], settings, learned))
    assert weights[1].item() == 0


@pytest.mark.parametrize("matcher", ["distance", "hard"])
def test_exit_with_a_single_sample_does_not_level_the_others(matcher: str) -> None:
    difficulty, settings = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0]), DarkDistillSettings(matcher=matcher)
    weights = match(difficulty, HARD, [EASY, torch.tensor([4]), HARD], settings)
    torch.testing.assert_close(weights[[0, 2]], match(difficulty, HARD, [EASY, HARD], settings))
    assert weights[1].item() == 0
    assert weights[2] > 2 * weights[0]
    alone = match(difficulty, HARD, [NONE, torch.tensor([2]), torch.tensor([3])], settings)
    assert alone[0].item() == 0
    assert alone.sum().item() == pytest.approx(1)


def test_hard_matching_takes_the_nearest_exit() -> None:
    settings = DarkDistillSettings(matcher="hard")
    assert match(DIFFICULTY, HARD, [EASY, HARD], settings).tolist() == [0, 1]
    assert match(DIFFICULTY, EASY, [EASY, HARD], settings).tolist() == [1, 0]


def test_equal_difficulties_match_all_exits_equally() -> None:
    weights = match(torch.ones(4), HARD, [EASY, HARD], DarkDistillSettings())
    assert weights.tolist() == [0.5, 0.5]


def test_learned_distance_is_positive_seeded_and_trainable() -> None:
    settings = DarkDistillSettings(matcher="learned")
    learned, again = make_matcher(settings, seed=3), make_matcher(settings, seed=3)
    assert isinstance(learned, LearnedDistance)
    assert isinstance(again, LearnedDistance)
    exits = exit_difficulty(DIFFICULTY, [EASY, HARD])
    distances = learned(DIFFICULTY, exits)
    assert distances.shape == (4, 2)
    assert (distances > 0).all()
    assert torch.equal(distances, again(DIFFICULTY, exits))
    match(DIFFICULTY, HARD, [EASY, HARD], settings, learned)[0].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in learned.parameters())
    assert make_matcher(DarkDistillSettings(), seed=3) is None

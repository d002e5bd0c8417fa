import math

import pytest
import torch

from strategies.darkdistill.difficulty import DifficultyPairs, DifficultySketch, bin_edges, pool, rank_correlation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pairs(difficulty: list[float], labels: list[int]) -> DifficultyPairs:
    return DifficultyPairs(torch.tensor(difficulty), torch.tensor(labels))


def test_draws_keep_each_difficulty_with_its_label() -> None:
    reported = DifficultyPairs.pool([pairs([0.1, 0.2], [0, 1]), pairs([0.3], [2])])
    drawn = reported.sample(300, seeded())
    label_of = {0.1: 0, 0.2: 1, 0.3: 2}
    assert [label_of[round(d, 1)] for d in drawn.difficulty.tolist()] == drawn.labels.tolist()
    assert all(60 < count < 140 for count in drawn.labels.bincount().tolist())
    assert torch.equal(drawn.difficulty, reported.sample(300, seeded()).difficulty)


@pytest.mark.parametrize(
    ("difficulty", "labels"),
    [([0.1], [0, 1]), ([math.nan], [0]), ([math.inf], [0]), ([1e30], [0]), ([-0.1], [0]), ([0.1], [3]), ([0.1], [-1])],
)
def test_checked_rejects_bad_pairs(difficulty: list[float], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"label|differ|difficult"):
        DifficultyPairs.checked(torch.tensor(difficulty), torch.tensor(labels), num_classes=3)


def test_difficulty_that_no_float32_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        DifficultyPairs.checked(torch.tensor([1e300], dtype=torch.float64), torch.tensor([0]), num_classes=3)


def test_sample_rejects_an_empty_pool() -> None:
    no_pairs = DifficultyPairs(torch.empty(0), torch.empty(0, dtype=torch.int64))
    sketch = DifficultySketch.build(no_pairs, 2, bins=4, clip=8.0, epsilon=0.0, rng=seeded())
    for empty in (no_pairs, sketch):
        assert len(empty) == 0
        with pytest.raises(ValueError, match="empty"):
            empty.sample(1, seeded())


def test_bin_edges_widen_and_cover_the_range() -> None:
    edges = bin_edges(16, 10.0)
    assert edges[0].item() == 0
    assert edges[-1].item() == pytest.approx(10)
    assert edges[1].item() == pytest.approx(0.05 * (201 ** (1 / 16) - 1))
    assert (edges.diff().diff() > 0).all()


def test_sketch_counts_per_label_and_bin() -> None:
    edges = bin_edges(3, 10.0).tolist()
    sketch = DifficultySketch.build(
        pairs([0.0, edges[1], edges[2] + 0.1, 99.0], [0, 0, 1, 1]), 2, bins=3, clip=10.0, epsilon=0.0, rng=seeded()
    )
    # The second loss, rounded to float32, may lie on either side of its edge.
    assert sketch.counts.tolist() in ([[1, 1, 0], [0, 0, 2]], [[2, 0, 0], [0, 0, 2]])


def test_sketch_round_trips_and_pools_by_adding() -> None:
    sketch = DifficultySketch.build(pairs([0.01, 3.0, 0.7], [0, 1, 1]), 2, bins=8, clip=10.0, epsilon=0.5, rng=seeded())
    sent = sketch.to_array()
    assert sent.shape == (16,)
    assert sent.dtype == torch.float32
    back = DifficultySketch.from_array(sent, 2, bins=8, clip=10.0)
    assert torch.equal(back.counts, sketch.counts)
    assert torch.equal(DifficultySketch.pool([back, back]).counts, 2 * sketch.counts)
    with pytest.raises(ValueError, match="expected 2 x 8"):
        DifficultySketch.from_array(sent[1:], 2, bins=8, clip=10.0)
    with pytest.raises(ValueError, match="not finite"):
        DifficultySketch.from_array(sent / 0.0, 2, bins=8, clip=10.0)


def test_sketch_draws_follow_the_losses_of_each_label() -> None:
    rng = seeded()
    easy = DifficultyPairs(0.1 * torch.rand(500, generator=rng), torch.zeros(500, dtype=torch.int64))
    hard = DifficultyPairs(2 + torch.rand(1500, generator=rng), torch.ones(1500, dtype=torch.int64))
    reported = DifficultyPairs.pool([easy, hard])
    sketch = DifficultySketch.build(reported, 2, bins=32, clip=10.0, epsilon=0.0, rng=rng)
    drawn = sketch.sample(4000, rng)
    assert drawn.labels.double().mean().item() == pytest.approx(0.75, abs=0.03)
    for label, part in enumerate((easy, hard)):
        quantiles = torch.tensor([0.1, 0.5, 0.9])
        have, want = (x.quantile(quantiles) for x in (drawn.difficulty[drawn.labels == label], part.difficulty))
        torch.testing.assert_close(have, want, rtol=0.15, atol=0.01)


def test_pool_rejects_a_mix_of_pairs_and_sketches() -> None:
    reported = pairs([0.1], [0])
    sketch = DifficultySketch.build(reported, 2, bins=4, clip=8.0, epsilon=0.0, rng=seeded())
    assert len(pool([reported, reported])) == len(pool([sketch, sketch])) == 2
    with pytest.raises(ValueError, match="pairs and others sketches"):
        pool([reported, sketch])


def test_sketch_noise_is_two_sided_geometric() -> None:
    empty = DifficultyPairs(torch.empty(0), torch.empty(0, dtype=torch.int64))
    noise = DifficultySketch.build(empty, 500, bins=20, clip=10.0, epsilon=1.0, rng=seeded()).counts
    ratio = math.exp(-1.0)
    assert torch.equal(noise, noise.round())
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert noise.var().item() == pytest.approx(2 * ratio / (1 - ratio) ** 2, rel=0.1)
    # Epsilon is the logarithm of how much likelier one count is than its neighbour.
    zeros, ones = (noise == 0).sum().item(), (noise == 1).sum().item()
    assert math.log(zeros / ones) == pytest.approx(1.0, abs=0.1)


def test_rank_correlation_equals_values_by_hand() -> None:
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert rank_correlation(rising, rising.exp()) == pytest.approx(1)
    assert rank_correlation(rising, -rising) == pytest.approx(-1)
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    assert rank_correlation(torch.tensor([1.0, 2.0, 2.0, 4.0]), rising) == pytest.approx(4.5 / math.sqrt(22.5))
    assert rank_correlation(torch.ones(4), rising) == 0

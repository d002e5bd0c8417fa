import torch

from benchmarks.distree_scores import Gate, NeighbourSimilarity, cross_fitted, judge, numbers
from tests.benchmarks.test_distree import answers


def test_neighbour_by_hand() -> None:
    # cosines to the exit before: 0.6, then 0.96
    features = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.8, 0.6]], [[0.0, 1.0]]])
    assert NeighbourSimilarity((-1.0, 0.5, 0.9)).exits(features).tolist() == [1]
    assert NeighbourSimilarity((-1.0, 0.7, 0.9)).exits(features).tolist() == [2]
    assert NeighbourSimilarity((-1.0, 0.7, 0.97)).exits(features).tolist() == [3]


def test_gate_judges_a_sample_without_having_seen_it() -> None:
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0)).double()
    right = (x[:, 0] > 0).numpy()
    assert ((cross_fitted(x, right) > 0).numpy() == right).mean() > 0.95
    noise = torch.rand(400, generator=torch.Generator().manual_seed(1)).numpy() > 0.5
    assert ((cross_fitted(x, noise) > 0).numpy() == noise).mean() < 0.6


def test_gate_leaves_by_its_scores() -> None:
    judged, tried = judge(answers(300, 1), answers(200, 2))
    assert numbers(judged, 1).shape == (3, 300, 15)
    assert {k: tuple(scores.shape) for k, scores in tried.gate.items()} == {1: (3, 200), 2: (3, 200)}
    middle = float(tried.gate[1][0].median())
    exits = Gate((middle, float("inf"))).exits(tried.features[1], tried.classify(1))
    assert exits.tolist() == [0 if score > middle else 2 for score in tried.gate[1][0].tolist()]
    some = tried.rows(torch.tensor([5, 3]))
    assert torch.equal(some.gate[2], tried.gate[2][:, [5, 3]])
    assert torch.equal(some.labels, tried.labels[[5, 3]])

import torch

from benchmarks.distree_scores import NeighbourSimilarity


def test_neighbour_by_hand() -> None:
    # cosines to the exit before: 0.6, then 0.96
    features = torch.tensor([[[1.0, 0.0]], [[0.6, 0.8]], [[0.8, 0.6]], [[0.0, 1.0]]])
    assert NeighbourSimilarity((-1.0, 0.5, 0.9)).exits(features).tolist() == [1]
    assert NeighbourSimilarity((-1.0, 0.7, 0.9)).exits(features).tolist() == [2]
    assert NeighbourSimilarity((-1.0, 0.7, 0.97)).exits(features).tolist() == [3]

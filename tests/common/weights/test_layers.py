import pytest
import torch

from common.weights.layers import average_layers


def test_layers_are_averaged_over_tiers_that_hold_them():
    models = {
        1: {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)},
        2: {"a": torch.tensor([4.0, 8.0]), "b": torch.tensor([5.0]), "n": torch.tensor(9)},
        3: {"a": torch.tensor([0.0, 0.0]), "b": torch.tensor([1.0]), "c": torch.tensor([7.0]), "n": torch.tensor(1)},
    }
    averaged = average_layers(models, {1: 10.0, 2: 30.0, 3: 20.0})
    assert averaged["a"].tolist() == pytest.approx([130 / 60, 260 / 60])
    assert averaged["b"].tolist() == pytest.approx([170 / 50])
    assert averaged["c"].tolist() == [7.0]
    assert averaged["n"] == 9
    assert averaged["a"].dtype == torch.float32
    assert averaged["n"].dtype == torch.int64


def test_tier_without_weight_is_left_out():
    models = {1: {"a": torch.tensor([1.0])}, 2: {"a": torch.tensor([3.0]), "b": torch.tensor([5.0])}}
    for weights in ({1: 4.0}, {1: 4.0, 2: 0.0}):
        assert average_layers(models, weights) == {"a": torch.tensor([1.0])}
    assert average_layers(models, {}) == {}


def test_averaging_does_not_change_tiers():
    models = {1: {"n": torch.tensor(1), "a": torch.tensor([1.0])}, 2: {"n": torch.tensor(5), "a": torch.tensor([2.0])}}
    averaged = average_layers(models, {1: 1.0, 2: 1.0})
    averaged["n"] += 100
    assert models[1]["n"] == 1
    assert models[1]["a"].item() == 1

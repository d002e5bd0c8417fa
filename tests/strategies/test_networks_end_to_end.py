"""Every family of networks through the same rounds, on real images."""

import pytest
import torch

from strategies.factory import make_strategy

ROUNDS = {
    "run.strategy": "darkdistill", "run.rounds": 2, "clients.count": 6, "clients.per-round": 4, "data.name": "cifar10",
    "data.limit": 240, "server.evaluate-every": 2, "darkdistill.distill-steps": 1, "darkdistill.server-epochs": 1,
    "darkdistill.generator-hidden": 32, "darkdistill.generator-channels": 8, "objective.name": "boosted",
    "clients.mix": "equal",
}  # fmt: skip
NETWORKS = {
    "vit_small32": {"network.width": 16},
    "convnet": {"network.width": 8},
    "wrn16": {"network.tiers": "2,4,7"},
    "resnet18": {"network.width": 4},
    "lenet": {"darkdistill.generator-output": "pixels"},
}


def first_weights(strategy):
    """Return the same seed's weights before training."""
    return make_strategy(strategy.config).model


@pytest.mark.parametrize("name", NETWORKS)
def test_darkdistill_trains_every_family(name, data_root, run_strategy):
    changes = {**ROUNDS, "network.name": name, **NETWORKS[name], "data.root": str(data_root / "cifar10_tiny")}
    strategy = run_strategy(changes).strategy
    assert strategy.round == 2
    start = first_weights(strategy)
    moved = [
        key for key in start if start[key].is_floating_point() and not torch.equal(start[key], strategy.model[key])
    ]
    assert len(moved) == sum(value.is_floating_point() for value in start.values())


def test_adapters_are_uploaded_and_frozen_weights_stay(data_root, run_strategy):
    changes = {**ROUNDS, "network.name": "vit_small32", "network.width": 16, "network.lora-rank": 2}
    strategy = run_strategy({**changes, "data.root": str(data_root / "cifar10_tiny")}).strategy
    start = first_weights(strategy)
    frozen = set(strategy.layouts[4].keys) - set(strategy.uploads[4].keys)
    assert frozen
    assert all(torch.equal(start[key], strategy.model[key]) for key in frozen)
    assert any(not torch.equal(start[key], strategy.model[key]) for key in strategy.uploads[4].keys)
    assert strategy.uploads[4].sizes[0] < 0.5 * strategy.layouts[4].sizes[0]

"""Methods that treat batch norm's statistics in a way of their own also run without any: `network.norm=group`."""

import pytest
import torch

from common.flower.local_grid import LocalGrid

PERSONAL = {"data.client-test": 0.25}
METHODS = {"eefl": {}, "darkdistill": {}, "fedper": PERSONAL, "hetero_splitee": {**PERSONAL, "splitee.cuts": "1,2,4"}}


@pytest.mark.parametrize("name", METHODS)
def test_method_runs_with_groups(run_strategy, name):
    slim = {"network.name": "resnet_slim", "network.width": 8, "clients.mix": "equal", "network.norm": "group"}
    nodes = [{"partition-id": 0}]
    run = run_strategy({**slim, "run.strategy": name, "run.rounds": 1, **METHODS[name]}, nodes, grid=LocalGrid)
    assert run.failure in (None, "")
    assert run.records[0].failures == {}
    state = run.strategy.model
    assert any(key.endswith("bn1.weight") for key in state)
    assert not any("running_" in key or "tracked" in key for key in state)
    assert all(torch.isfinite(value).all() for value in state.values())

import pytest
import torch

from common.storage.model_file import load_model
from strategies.engine.rounds import QuorumError


def test_only_full_depth_clients_take_part(run_strategy):
    run = run_strategy({"run.strategy": "exclusivefl"})
    assert all(record.clients == {3: 2} for record in run.records)


def test_all_full_depth_clients_equal_eefl(run_strategy):
    deep = {"clients.mix": "0,0,1"}
    exclusive = run_strategy({**deep, "run.strategy": "exclusivefl"}).strategy.model
    eefl = run_strategy(deep).strategy.model
    assert all(torch.equal(exclusive[k], v) for k, v in eefl.items())


def test_shallow_clients_do_not_contribute(run_strategy):
    """With the same images on full-depth clients, only EEFL also learns from the shallow clients."""
    exclusive = run_strategy({"run.strategy": "exclusivefl", "run.rounds": 1}).strategy.model
    eefl = run_strategy({"run.rounds": 1}).strategy.model
    last = [k for k in eefl if k.startswith(("units.2", "exits.3"))]
    first = [k for k in eefl if k.startswith(("units.0", "exits.1"))]
    assert last
    assert all(torch.equal(exclusive[k], eefl[k]) for k in last)
    assert not any(torch.equal(exclusive[k], eefl[k]) for k in first)


def test_all_clients_get_final_model(run_strategy, tmp_path):
    run_strategy({"run.strategy": "exclusivefl"})
    for depth in (1, 2, 3):
        assert len(load_model(tmp_path / "clients" / "test" / f"depth-{depth}").network.exit_positions) == depth


def test_run_fails_without_full_depth_client(run_strategy):
    with pytest.raises(QuorumError, match="round 1: no client can take part"):
        run_strategy({"run.strategy": "exclusivefl", "clients.mix": "0.5,0.5,0"})

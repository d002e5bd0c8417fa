import pytest
import torch

from common.storage.model_file import load_model
from strategies.engine.rounds import QuorumError


def test_only_clients_of_full_depth_take_part(run_strategy):
    run = run_strategy({"run.strategy": "exclusivefl"})
    assert all(record.clients == {3: 2} for record in run.records)


def test_where_all_are_capable_it_is_eefl(run_strategy):
    deep = {"clients.mix": "0,0,1"}
    exclusive = run_strategy({**deep, "run.strategy": "exclusivefl"}).strategy.model
    eefl = run_strategy(deep).strategy.model
    assert all(torch.equal(exclusive[k], v) for k, v in eefl.items())


def test_the_others_count_for_nothing(run_strategy):
    """The same images at the same full-depth clients: EEFL learns from the shallow ones as well."""
    exclusive = run_strategy({"run.strategy": "exclusivefl", "run.rounds": 1}).strategy.model
    eefl = run_strategy({"run.rounds": 1}).strategy.model
    last = [k for k in eefl if k.startswith(("units.2", "exits.3"))]
    first = [k for k in eefl if k.startswith(("units.0", "exits.1"))]
    assert last
    assert all(torch.equal(exclusive[k], eefl[k]) for k in last)
    assert not any(torch.equal(exclusive[k], eefl[k]) for k in first)


def test_everybody_gets_the_final_model(run_strategy, tmp_path):
    run_strategy({"run.strategy": "exclusivefl"})
    for depth in (1, 2, 3):
        assert len(load_model(tmp_path / "clients" / "test" / f"depth-{depth}").network.exit_positions) == depth


def test_without_a_capable_client_the_run_fails_clearly(run_strategy):
    with pytest.raises(QuorumError, match="round 1: no client can take part"):
        run_strategy({"run.strategy": "exclusivefl", "clients.mix": "0.5,0.5,0"})

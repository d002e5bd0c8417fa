"""A network divided into depth tiers, as the frame sees it."""

import pytest

from common.capacity import Capacity, Choice
from common.config import RunConfig
from common.networks import NetworkSpec, build
from common.networks.cost import cost_table
from strategies.parts import TIERS

SPEC = NetworkSpec("lenet", 10, (1, 8, 8), width=3)


def test_division_is_the_seeds_network_with_its_costs():
    division, network = TIERS.divide(SPEC.to_json(), seed=4), build(SPEC, seed=4)
    assert all(value.equal(division.whole.state_dict()[key]) for key, value in network.state_dict().items())
    assert division.spec == SPEC
    assert division.costs == cost_table(network)
    assert list(division.numbers(RunConfig())) == [1, 2, 3]
    for number in (1, 2, 3):
        part = division.take(number)
        assert part.exit_positions == network.prefix(number).exit_positions
        assert division.parameters(number) == sum(p.numel() for p in part.parameters())
        assert division.exit_macs(number)[-1] == division.macs(number)
        assert len(division.exit_macs(number)) == number
        assert TIERS.stored(number) == (number, 0)


def test_costs_that_were_sent_are_not_counted_again(monkeypatch):
    costs = TIERS.divide(SPEC.to_json(), seed=4).costs.to_json()
    monkeypatch.setattr(TIERS, "whole", lambda *_: pytest.fail("the network was built"), raising=False)
    sent = TIERS.divide(SPEC.to_json(), seed=4, costs=costs)
    assert sent.costs.to_json() == costs
    assert sent.choose(Capacity(depth=2), RunConfig(), 100) == Choice(2, "declared depth 2")
    assert sent.choose(Capacity(), RunConfig(), 100) == Choice(3, "the whole network fits")

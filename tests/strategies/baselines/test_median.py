import pytest
import torch

from common.errors import UserError
from common.weights.flat import FlatState
from strategies.method import RoundUpdate, TierUpdate

SETTINGS = {"run.strategy": "median", "run.rounds": 1}


def updated(strategy, part, *shifts):
    """Return a part's start and an update with models that shift every weight of it by a number."""
    start = strategy.part_state(part)
    states = {c: FlatState(start.layout, start.floats + shift, start.counters) for c, shift in enumerate(shifts)}
    mean = FlatState(start.layout, start.floats + sum(shifts) / len(shifts), start.counters)
    update = RoundUpdate({part: TierUpdate(mean.state_dict(), 10 * len(shifts), tuple(states))}, states=states)
    return start.state_dict(), update


def test_merge_takes_coordinate_wise_median(prepare_run):
    strategy = prepare_run(SETTINGS).strategy
    start, update = updated(strategy, 3, 1.0, -2.0, 1e6)
    strategy.merge(1, update)
    for key, value in start.items():
        assert torch.allclose(strategy.model[key], value + 1.0, atol=1e-6), key


def test_even_number_of_models_takes_lower_median(prepare_run):
    strategy = prepare_run(SETTINGS).strategy
    start, update = updated(strategy, 3, 4.0, -1.0)
    strategy.merge(1, update)
    assert all(torch.allclose(strategy.model[key], value - 1.0, atol=1e-6) for key, value in start.items())


def test_run_equals_robust_aggregation_median_bit_for_bit(run_strategy):
    """Three clients in a tier have one median, so the method and the option `robust.aggregation` must agree."""
    own = run_strategy({**SETTINGS, "clients.mix": "1,0,0", "clients.count": 3, "clients.per-round": 3}).strategy.model
    frame = run_strategy({
        "run.rounds": 1, "robust.aggregation": "median", "clients.mix": "1,0,0", "clients.count": 3,
        "clients.per-round": 3,
    }).strategy.model  # fmt: skip
    assert all(torch.equal(own[key], value) for key, value in frame.items())


def test_separate_models_exclude_staleness(prepare_run):
    assert prepare_run(SETTINGS).strategy.apart
    with pytest.raises(UserError, match=r"round\.staleness"):
        prepare_run({**SETTINGS, "round.staleness": 0.5})


def test_merge_keeps_the_tiers_counters(prepare_run):
    network = {"network.name": "resnet_slim", "network.width": 2, "clients.mix": "1,1,1,1"}
    strategy = prepare_run({**SETTINGS, **network}).strategy
    start, update = updated(strategy, 3, 1.0, 2.0, 3.0)
    counters = {key: value + 7 for key, value in start.items() if not value.is_floating_point()}
    update.tiers[3].state.update(counters)
    strategy.merge(1, update)
    assert counters
    assert all(torch.equal(strategy.model[key], value) for key, value in counters.items())


@pytest.mark.parametrize("option", [{"robust.reject": 1e6}, {"robust.aggregation": "trimmed-mean"}])
def test_robust_aggregation_goes_with_it(run_strategy, option):
    settings = {**SETTINGS, "clients.mix": "1,0,0", "clients.count": 3, "clients.per-round": 3}
    plain, robust = (run_strategy({**settings, **more}).strategy.model for more in ({}, option))
    assert all(torch.equal(value, robust[key]) for key, value in plain.items() if value.is_floating_point())

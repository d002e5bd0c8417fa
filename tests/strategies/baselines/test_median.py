import pytest
import torch

from common.errors import UserError
from common.weights.flat import FlatState
from strategies.method import RoundUpdate, TierUpdate

SETTINGS = {"run.strategy": "median", "run.rounds": 1}


def updated(strategy, part, *shifts):
    """A part's models, each the start plus a number in every weight."""
    start = strategy.part_state(part)
    states = {c: FlatState(start.layout, start.floats + shift, start.counters) for c, shift in enumerate(shifts)}
    mean = FlatState(start.layout, start.floats + sum(shifts) / len(shifts), start.counters)
    update = RoundUpdate({part: TierUpdate(mean.state_dict(), 10 * len(shifts), tuple(states))}, states=states)
    return start.state_dict(), update


def test_merge_takes_the_coordinates_median(prepare_run):
    strategy = prepare_run(SETTINGS).strategy
    start, update = updated(strategy, 3, 1.0, -2.0, 1e6)
    strategy.merge(1, update)
    for key, value in start.items():
        assert torch.allclose(strategy.model[key], value + 1.0, atol=1e-6), key


def test_of_an_even_number_it_is_the_lower_one(prepare_run):
    strategy = prepare_run(SETTINGS).strategy
    start, update = updated(strategy, 3, 4.0, -1.0)
    strategy.merge(1, update)
    assert all(torch.allclose(strategy.model[key], value - 1.0, atol=1e-6) for key, value in start.items())


def test_a_whole_run_is_robust_aggregations_median_bit_for_bit(run_strategy):
    """Of three clients in a tier there is one median; the frame's own option must find the same."""
    own = run_strategy({**SETTINGS, "clients.mix": "1,0,0", "clients.count": 3, "clients.per-round": 3}).strategy.model
    frame = run_strategy({
        "run.rounds": 1, "robust.aggregation": "median", "clients.mix": "1,0,0", "clients.count": 3,
        "clients.per-round": 3,
    }).strategy.model  # fmt: skip
    assert all(torch.equal(own[key], value) for key, value in frame.items())


def test_models_come_apart_so_late_answers_have_no_place(prepare_run):
    assert prepare_run(SETTINGS).strategy.apart
    with pytest.raises(UserError, match=r"round\.staleness"):
        prepare_run({**SETTINGS, "round.staleness": 0.5})

import pytest
import torch

from common.settings import read_section
from strategies.baselines.inclusivefl import InclusiveFLSettings, deeper_gradient
from strategies.method import RoundUpdate, TierUpdate
from tests.support.personal_runs import same

INCLUSIVE = {"run.strategy": "inclusivefl"}
VIT = {"network.name": "vit_small32", "network.width": 16, "data.limit": 120, "clients.mix": "equal"}


def moved(strategy, **by):
    """Return an update of one client of 10 samples per tier, whose parameters all moved by a number: {"t2": 1.0}."""
    parameters = dict(strategy.network.named_parameters())
    tiers = {}
    for name, distance in by.items():
        part = int(name[1:])
        state = {
            key: strategy.model[key] + (distance if key in parameters else 0) for key in strategy.layouts[part].keys
        }
        tiers[part] = TierUpdate(state, 10, (part,))
    return RoundUpdate(tiers)


def test_deeper_gradient_is_mean_over_units_that_fit():
    gradient = {
        "units.1.weight": torch.tensor([1.0, 2.0]), "units.2.weight": torch.tensor([3.0, 4.0]),
        "units.3.weight": torch.tensor([5.0]), "units.4.weight": torch.tensor([8.0, 9.0]),
        "units.4.bias": torch.tensor([1.0]), "units.5.weight": torch.tensor([100.0, 100.0]),
        "exits.2.linear.weight": torch.tensor([7.0]),
    }  # fmt: skip
    # unit 3 has another shape, unit 4 another parameter, unit 5 is deeper than the larger model
    found = deeper_gradient(gradient, 1, 4)
    assert {key: value.tolist() for key, value in found.items()} == {"units.1.weight": [2.0, 3.0]}
    assert deeper_gradient(gradient, 3, 4)["units.3.weight"].tolist() == [5.0]
    assert deeper_gradient(gradient, 0, 4) == {}


def test_last_unit_of_smaller_tier_takes_share_of_larger_ones_last_gradient(prepare_run):
    strategy = prepare_run({**INCLUSIVE, "inclusivefl.beta": 0.25}).strategy
    start = {key: value.clone() for key, value in strategy.model.items()}
    strategy.merge(1, moved(strategy, t1=-1.0, t2=-2.0, t3=-4.0))  # gradients 1, 2, 4; there is no momentum yet
    first = {"units.0": -7 / 3, "units.1": -3.0, "units.2": -4.0, "exits.1": -7 / 3, "exits.2": -3.0, "exits.3": -4.0}
    for key, value in strategy.model.items():
        torch.testing.assert_close(value, start[key] + first[key.rpartition(".")[0].removesuffix(".linear")[:7]])
    start = {key: value.clone() for key, value in strategy.model.items()}
    strategy.merge(2, moved(strategy, t1=-1.0, t2=-1.0, t3=-1.0))
    # tier 1 takes 0.25 of tier 2's gradient 2 in unit 0, tier 2 0.25 of tier 3's 4 in unit 1; no exit takes any
    taught = {"units.0": -1 - 0.25 / 3, "units.1": -1 - 0.75 / 2}
    for key, value in strategy.model.items():
        torch.testing.assert_close(value, start[key] + taught.get(key[:7], -1.0))


def test_absent_tier_keeps_its_last_gradient_as_momentum(prepare_run):
    strategy = prepare_run({**INCLUSIVE, "inclusivefl.beta": 1.0}).strategy
    strategy.merge(1, moved(strategy, t2=-2.0))
    start = {key: value.clone() for key, value in strategy.model.items()}
    for round_ in (2, 3):  # tier 1 is alone, and its last unit, which is all of its trunk, follows tier 2 wholly
        strategy.merge(round_, moved(strategy, t1=-1.0))
    for key in ("units.0", "exits.1"):
        step = -4.0 if key == "units.0" else -2.0
        for name, value in strategy.model.items():
            if name.startswith(key):
                torch.testing.assert_close(value, start[name] + step)


def test_equal_blocks_teach_together(prepare_run):
    """In a transformer the momentum is the mean over all blocks between two exits, both ends counted."""
    strategy = prepare_run({**INCLUSIVE, **VIT}).strategy
    update = moved(strategy, t2=0.0)
    for key, value in update.tiers[2].state.items():
        if key.startswith("units."):
            update.tiers[2].state[key] = value - float(key.split(".")[1])
    strategy.merge(1, update)
    assert set(strategy.momentum) == {1}
    assert strategy.momentum[1]
    assert strategy.network.tier_positions == (4, 7, 10, 13)
    for key, value in strategy.momentum[1].items():
        assert key.startswith("units.3.")
        torch.testing.assert_close(value, torch.full_like(value, (3 + 4 + 5 + 6) / 4), atol=1e-5, rtol=1e-5)


def test_statistics_take_no_share(prepare_run):
    strategy = prepare_run(
        {**INCLUSIVE, "network.name": "resnet_slim", "network.width": 4, "clients.mix": "equal"}
    ).strategy
    assert any(key.endswith("running_var") for key in strategy.model)
    strategy.merge(1, moved(strategy, t1=-1.0, t2=-2.0, t3=-3.0, t4=-4.0))
    assert set(strategy.momentum) == {1, 2, 3}
    parameters = dict(strategy.network.named_parameters())
    assert all(key in parameters for state in strategy.momentum.values() for key in state)


def test_zero_beta_equals_eefl_bit_for_bit(run_strategy):
    rounds = {"run.rounds": 3}
    eefl = run_strategy(rounds).strategy.model
    assert same(run_strategy({**INCLUSIVE, **rounds, "inclusivefl.beta": 0.0}).strategy.model, eefl)
    taught = run_strategy({**INCLUSIVE, **rounds}).strategy.model
    assert not any(torch.equal(taught[key], value) for key, value in eefl.items())


def test_first_round_equals_eefl_bit_for_bit(run_strategy):
    assert same(
        run_strategy({**INCLUSIVE, "run.rounds": 1}).strategy.model, run_strategy({"run.rounds": 1}).strategy.model
    )


def test_resumed_run_has_the_momentum(prepare_run):
    whole, first, resumed, forgetful = (prepare_run(INCLUSIVE).strategy for _ in range(4))
    updates = [{"t1": -1.0, "t2": -2.0, "t3": -3.0}, {"t1": -3.0, "t3": 1.0}]
    for round_, by in enumerate(updates, start=1):
        whole.merge(round_, moved(whole, **by))
    first.merge(1, moved(first, **updates[0]))
    model, tensors, values = first.checkpoint()
    for strategy, kept in ((resumed, tensors), (forgetful, {})):
        strategy.restore(dict(model), kept, values)
        strategy.merge(2, moved(strategy, **updates[1]))
    assert same(resumed.model, whole.model)
    assert not same(forgetful.model, whole.model)


@pytest.mark.parametrize("beta", [-0.1, 1.5])
def test_invalid_beta_is_reported(beta):
    bound = "at least 0" if beta < 0 else "at most 1"
    found = read_section(InclusiveFLSettings, beta=beta).problems
    assert len(found) == 1
    assert bound in found[0]

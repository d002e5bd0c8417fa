"""Ditto: FedAvg, plus a personal network per client that is pulled towards the server's weights."""

import pytest
import torch

from common.messages.protocol import ClientReport
from common.settings import read_section
from common.weights.flat import FlatState
from strategies.method import Effort
from strategies.personalised.ditto import DittoLocal, DittoSettings
from tests.support.personal_runs import (
    DEEP,
    Recorder,
    close,
    delivered,
    kept,
    make_job,
    same,
    seeded,
    sgd,
)  # fmt: skip

DITTO = {"run.strategy": "ditto"}


def shifted(state, by: float) -> FlatState:
    return FlatState.of({key: value + by for key, value in state.items()})


def own(outcome):
    return {key.removeprefix("own."): value for key, value in outcome.kept.tensors.items()}


def train(strategy, client, round_, server, kept=None, **changes):
    job = make_job(strategy, client, round_, **({"kept": kept} if kept else {}), **changes)
    local = DittoLocal()
    local.load(job, server)
    return local.train(job)


def test_global_network_equals_eefl_bit_for_bit(run_strategy):
    app = Recorder()
    ditto, eefl = run_strategy({**DITTO, "ditto.pull": 5.0}, app=app).strategy, run_strategy().strategy
    assert same(ditto.model, eefl.model)
    assert app.down() == app.up() == set(eefl.model)


def test_personal_network_starts_from_server_weights(prepare_run):
    strategy = prepare_run({**DITTO, **DEEP, "ditto.pull": 0.0}).strategy
    server = shifted(seeded(strategy), 0.01)
    outcome = train(strategy, 1, 1, server)
    network = strategy.network
    network.load_state_dict(server.state_dict())
    sgd(strategy, network, 1, 1, 1, "personal")
    assert close(own(outcome), network.state_dict())
    assert not close(own(outcome), outcome.state.state_dict())  # other batches than the global network's


def test_zero_pull_equals_local_training(prepare_run):
    strategy = prepare_run({**DITTO, **DEEP, "ditto.pull": 0.0}).strategy
    first = train(strategy, 1, 1, FlatState.of(seeded(strategy)))
    elsewhere = shifted(seeded(strategy), 0.5)
    second = train(strategy, 1, 2, elsewhere, first.kept)
    network = strategy.network
    sgd(strategy, network, 1, 1, 1, "personal")
    sgd(strategy, network, 1, 2, 1, "personal")
    assert close(own(second), network.state_dict())


def test_one_step_matches_hand_computation(prepare_run):
    one = {"train.batch-size": 64, "train.momentum": 0.0, "train.weight-decay": 0.0, "train.lr": 0.1}
    strategy = prepare_run({**DITTO, **DEEP, **one, "ditto.pull": 2.0}).strategy
    first = train(strategy, 1, 1, FlatState.of(seeded(strategy)))
    v, w = own(first), shifted(seeded(strategy), 0.03).state_dict()
    second = own(train(strategy, 1, 2, FlatState.of(w), first.kept))
    network, data = strategy.network, make_job(strategy, 1)
    network.load_state_dict(v)
    torch.stack([torch.nn.functional.cross_entropy(z, data.y) for z in network(data.x)]).sum().backward()
    lr = strategy.lr(2)
    for name, parameter in network.named_parameters():
        expected = v[name] - lr * (parameter.grad + 2.0 * (v[name] - w[name]))
        torch.testing.assert_close(second[name], expected, rtol=1e-5, atol=1e-6)


def test_pull_and_epochs_apply_to_personal_network_only(prepare_run):
    changes = {**DITTO, **DEEP, "ditto.pull": 3.0, "ditto.epochs": 4}
    strategy = prepare_run(changes).strategy
    start = FlatState.of(seeded(strategy))
    job, local = make_job(strategy, 1), DittoLocal()
    for round_ in (1, 2):  # one client half serves a node's clients in turn: the anchor of the first must not remain
        local.load(job, start)
        outcome = local.train(job)
        network = prepare_run(changes).strategy.network
        sgd(strategy, network, 1, 1, 1)
        assert close(outcome.state.state_dict(), network.state_dict()), round_
    network = strategy.network
    sgd(strategy, network, 1, 1, 4, "personal", pull=3.0, anchor=seeded(strategy))
    assert close(own(outcome), network.state_dict())


def test_delivered_model_is_personal_else_global_network(run_strategy):
    strategy = run_strategy({**DITTO, **DEEP, "clients.per-round": 2}).strategy
    assert set(range(6)) - strategy.trained
    for client in range(6):
        expected = kept(strategy, client) if client in strategy.trained else strategy.model
        assert same(delivered(strategy, client), expected)
        assert same(delivered(strategy, client), strategy.model) == (client not in strategy.trained)


@pytest.mark.parametrize("wrong", [{"pull": -0.1}, {"epochs": -1}])
def test_invalid_settings_are_reported(wrong):
    assert read_section(DittoSettings).problems == []
    assert len(read_section(DittoSettings, **wrong).problems) == 1


@pytest.mark.parametrize(("epochs", "passes"), [(0, 3 * 2 + 3 * 2), (5, 3 * 2 + 3 * 5)])
def test_personal_network_costs_its_own_epochs(prepare_run, epochs, passes):
    strategy = prepare_run({**DITTO, "train.epochs": 2, "ditto.epochs": epochs}).strategy
    assert strategy.effort(ClientReport(0, 2, "", 40)) == Effort(passes * 40 * strategy.parts.macs(2))

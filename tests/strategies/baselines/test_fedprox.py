"""FedProx: EEFL with a proximal term that pulls clients to the server's weights."""

import torch

from common.settings import read_section
from common.weights.flat import FlatState
from strategies.baselines.fedprox import FedProxLocal, FedProxSettings
from tests.support.personal_runs import DEEP, close, make_job, same, seeded, sgd

FEDPROX = {"run.strategy": "fedprox", "train.epochs": 2}


def test_zero_mu_equals_eefl_bit_for_bit(run_strategy):
    eefl = run_strategy({"train.epochs": 2}).strategy.model
    assert same(run_strategy({**FEDPROX, "fedprox.mu": 0.0}).strategy.model, eefl)
    assert not same(run_strategy({**FEDPROX, "fedprox.mu": 0.05}).strategy.model, eefl)


def test_two_steps_match_hand_computation(prepare_run):
    plain = {"train.batch-size": 16, "train.epochs": 1, "train.momentum": 0.0, "train.weight-decay": 0.0}
    strategy = prepare_run({**FEDPROX, **DEEP, **plain, "fedprox.mu": 4.0}).strategy
    job, w = make_job(strategy, 1), seeded(strategy)
    assert len(job.y) == 32  # two batches; at the first one the pull is zero
    pulled = FedProxLocal().train(job).state.state_dict()
    network = strategy.network
    sgd(strategy, network, 1, 1, 1, pull=4.0, anchor=w)
    assert close(pulled, network.state_dict())
    network.load_state_dict(w)
    sgd(strategy, network, 1, 1, 1)
    assert not close(pulled, network.state_dict())
    free = torch.cat([(value - w[key]).flatten() for key, value in network.state_dict().items()]).norm()
    assert torch.cat([(value - w[key]).flatten() for key, value in pulled.items()]).norm() < free


def test_each_client_is_pulled_to_weights_it_received(prepare_run):
    strategy = prepare_run({**FEDPROX, **DEEP, "fedprox.mu": 4.0}).strategy
    moved = FlatState.of({key: value + 0.1 for key, value in seeded(strategy).items()})
    local, job = FedProxLocal(), make_job(strategy, 1)
    for state in (FlatState.of(seeded(strategy)), moved):
        local.load(job, state)
        result = local.train(job).state
    again = FedProxLocal()
    again.load(job, moved)
    assert torch.equal(again.train(job).state.floats, result.floats)


def test_invalid_settings_are_reported():
    assert read_section(FedProxSettings).problems == []
    assert read_section(FedProxSettings, mu=-1.0).problems == ["fedprox.mu is -1.0, must be at least 0"]

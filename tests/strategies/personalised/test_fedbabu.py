"""FedBABU: rounds train the body only; each client fine-tunes the whole network before use."""

import copy

import torch

from strategies.personalised.fedbabu import FedBABULocal
from tests.support.personal_runs import (
    DEEP,
    Recorder,
    close,
    delivered,
    heads,
    kept,
    make_job,
    same,
    seeded,
    sgd,
    trunk,
)  # fmt: skip

FEDBABU = {"run.strategy": "fedbabu", "personal.finetune-epochs": 2}


def test_only_backbone_is_sent(run_strategy):
    app = Recorder()
    run = run_strategy(FEDBABU, app=app)
    assert app.down() == app.up() == set(trunk(run.strategy.model))


def test_heads_keep_initial_weights_until_fine_tuning(run_strategy):
    strategy = run_strategy({**FEDBABU, **DEEP, "clients.per-round": 3}).strategy
    start = heads(seeded(strategy))
    assert all(same(kept(strategy, client), start) for client in strategy.trained)
    for client in range(6):
        own = delivered(strategy, client)
        assert not any(torch.equal(own[key], value) for key, value in start.items())
    assert not same(heads(delivered(strategy, 0)), heads(delivered(strategy, 1)))


def test_body_step_matches_hand_computation(prepare_run):
    strategy = prepare_run({**FEDBABU, **DEEP, "train.epochs": 2}).strategy
    outcome = FedBABULocal().train(make_job(strategy, 2))
    network = strategy.network
    sgd(strategy, network, 2, 1, 2, part="units.")
    assert close(outcome.state.state_dict(), trunk(network.state_dict()))
    assert same(heads(network.state_dict()), heads(seeded(strategy)))


def test_fine_tuning_matches_hand_computation(run_strategy):
    strategy = run_strategy({**FEDBABU, **DEEP, "clients.per-round": 3}).strategy
    for client in range(6):  # sampled or not
        network = copy.deepcopy(strategy.global_network())
        sgd(strategy, network, client, 2, 2, "fine-tuning")
        assert close(delivered(strategy, client), network.state_dict())

"""FedPer: the backbone is averaged, the heads stay on the clients."""

import torch

from strategies.personalised.base import PersonalTraining
from tests.support.personal_runs import (
    DEEP,
    HOME,
    NODES,
    Recorder,
    close,
    delivered,
    heads,
    kept,
    make_job,
    same,
    seeded,
    trunk,
)  # fmt: skip

FEDPER = {"run.strategy": "fedper"}


def test_only_backbone_is_sent(run_strategy):
    app = Recorder()
    run = run_strategy(FEDPER, app=app)
    assert app.down() == app.up() == set(trunk(run.strategy.model))
    assert same(heads(run.strategy.model), heads(seeded(run.strategy)))


def test_one_round_equals_eefl_except_heads(run_strategy):
    one = {"run.rounds": 1}
    app = Recorder()
    eefl = run_strategy({**one, **HOME}, NODES, app).strategy
    fedper = run_strategy({**one, **FEDPER, **HOME}, NODES).strategy
    assert same(trunk(fedper.model), trunk(eefl.model))
    uploaded = {client: state.state_dict() for reply in app.replies for client, state in reply.lone.items()}
    assert all(same(kept(fedper, client), heads(uploaded[client])) for client in range(6))
    assert not torch.equal(kept(fedper, 4)["exits.1.linear.bias"], kept(fedper, 5)["exits.1.linear.bias"])


def test_two_rounds_match_hand_computation(run_strategy):
    strategy = run_strategy({**FEDPER, **DEEP, "clients.count": 3, "clients.per-round": 3}).strategy
    own = {client: heads(seeded(strategy)) for client in range(3)}
    shared = trunk(seeded(strategy))
    for round_ in (1, 2):
        sums = {key: torch.zeros_like(value, dtype=torch.float64) for key, value in shared.items()}
        for client in range(3):
            job = make_job(strategy, client, round_)
            job.model.load_dict({**shared, **own[client]})
            PersonalTraining().train(job)
            after = job.model.read(job.model.layout).state_dict()
            own[client] = heads(after)
            sums = {key: value + len(job.y) * after[key].double() for key, value in sums.items()}
        samples = sum(len(make_job(strategy, client).y) for client in own)
        shared = {key: (value / samples).float() for key, value in sums.items()}
    assert close(trunk(strategy.model), shared)
    assert all(close(delivered(strategy, client), {**shared, **own[client]}) for client in own)


def test_client_keeps_heads_while_not_sampled(run_strategy):
    strategy = run_strategy({**FEDPER, **DEEP, "run.rounds": 3, "clients.per-round": 2}).strategy
    early = [client for client, round_ in strategy.committed.items() if round_ < 3]
    assert early
    for client in strategy.trained:
        assert same(heads(delivered(strategy, client)), kept(strategy, client))
        assert same(trunk(delivered(strategy, client)), trunk(strategy.model))
        assert not same(kept(strategy, client), heads(seeded(strategy)))


def test_unsampled_client_has_server_backbone_and_initial_heads(run_strategy):
    strategy = run_strategy({**FEDPER, **DEEP, "clients.per-round": 2}).strategy
    others = set(range(6)) - strategy.trained
    assert others
    for client in others:
        assert same(delivered(strategy, client), {**trunk(strategy.model), **heads(seeded(strategy))})
    assert not same(trunk(strategy.model), trunk(seeded(strategy)))

"""Local training only: no weights are sent."""

import pytest

from common.errors import UserError
from strategies.personalised.base import PersonalTraining
from tests.support.personal_runs import DEEP, Recorder, close, delivered, kept, make_job, same, seeded, sgd

LOCAL = {"run.strategy": "local"}


def test_no_weights_are_sent(run_strategy):
    app = Recorder()
    run = run_strategy(LOCAL, app=app)
    assert app.sent
    assert app.down() == app.up() == set()
    assert all(len(state.floats) == 0 for _, payload in app.sent for state in payload.states.values())
    assert not any(reply.client_arrays for reply in app.replies)
    assert same(run.strategy.model, seeded(run.strategy))
    assert run.records[-1].failures == {}


@pytest.mark.parametrize("network", [{}, {"network.name": "resnet_slim", "network.width": 4}])
def test_client_trains_as_it_would_alone(run_strategy, prepare_run, network):
    changes = {**LOCAL, **DEEP, **network, "clients.mix": "0,0,0,1" if network else "0,0,1", "clients.per-round": 4}
    strategy = run_strategy({**changes, "run.rounds": 3}).strategy
    rounds = {client: [r for r in (1, 2, 3) if client in sampled(prepare_run, changes, r)] for client in range(6)}
    assert {len(seen) for seen in rounds.values()} > {3}
    for client, seen in rounds.items():
        alone = prepare_run(changes).strategy.network
        for round_ in seen:
            sgd(strategy, alone, client, round_, 1)
        if seen:
            assert close(delivered(strategy, client), alone.state_dict())
            assert same(kept(strategy, client), delivered(strategy, client))


def sampled(prepare_run, changes, round_) -> set[int]:
    """Return the clients of a round: the choice depends only on the seed and the round."""
    run = prepare_run({**changes, "run.name": f"sample-{round_}"})
    run.strategy.configure_train(round_, None, None, run.grid)
    return set(run.strategy.asked)


def test_stored_network_is_loaded_bit_for_bit(prepare_run):
    strategy = prepare_run({**LOCAL, **DEEP}).strategy
    first = PersonalTraining().train(make_job(strategy, 1))
    assert len(first.state.floats) == 0
    job = make_job(strategy, 1, 2, kept=first.kept)
    PersonalTraining().load(job, first.state)
    state = job.model.read(job.model.layout).state_dict()
    assert same({f"own.{key}": value for key, value in state.items()}, first.kept.tensors)


def test_pretrained_weights_are_refused(prepare_run):
    with pytest.raises(UserError, match=r"leave network\.pretrained empty"):
        prepare_run(
            {**LOCAL, "clients.mix": "equal", "network.name": "deit_tiny", "network.pretrained": "x.safetensors"}
        )

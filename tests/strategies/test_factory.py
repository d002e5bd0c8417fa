import pytest
import torch

from common.errors import UserError
from strategies.baselines.eefl import EEFL
from strategies.configuration import read_config
from strategies.factory import make_strategy


def test_configuration_becomes_strategy(flat):
    strategy = make_strategy(
        read_config({**flat, "network.tiers": "1,3", "clients.mix": "1,1", "server.evaluate-every": 3})
    )
    assert isinstance(strategy, EEFL)
    assert strategy.spec.name == "lenet"
    assert strategy.spec.num_classes == 10
    assert strategy.spec.input_shape == (1, 8, 8)
    assert strategy.tiers == (1, 2)
    assert strategy.classes == tuple("0123456789")
    assert strategy.evaluator is not None
    assert strategy.round == 0


def test_same_seed_gives_same_initial_weights(flat):
    one, two = (make_strategy(read_config({**flat, "run.seed": 4})) for _ in range(2))
    other = make_strategy(read_config({**flat, "run.seed": 5}))
    assert all(torch.equal(v, two.model[k]) for k, v in one.model.items())
    assert not all(torch.equal(v, other.model[k]) for k, v in one.model.items())


def test_server_validates_on_samples_that_clients_hold_out(flat):
    strategy = make_strategy(read_config({**flat, "server.evaluate-every": 1, "data.validation": 0.25}))
    assert len(strategy.evaluator.validation) == 60  # 6 clients hold out 10 of 40 each
    assert len(strategy.evaluator.test) > 100


def test_evaluation_without_validation_samples_is_refused(flat):
    settings = {**flat, "data.validation": 0.0}
    with pytest.raises(UserError, match=r"data\.validation is 0\.0 and leaves no validation samples.*evaluate-every=0"):
        make_strategy(read_config({**settings, "server.evaluate-every": 1}))
    assert make_strategy(read_config({**settings, "server.evaluate-every": 0})).evaluator is None


def test_samples_that_no_client_gets_are_counted(flat):
    shards = {"data.partitioner": "shards", "data.shards-per-client": 7, "clients.count": 9, "clients.per-round": 3}
    lines = make_strategy(read_config({**flat, **shards, "data.limit": 200})).data.lines()
    assert any("11 of 200 training samples belong to no client" in line for line in lines)  # 63 shards of 3
    assert not any("belong to no client" in line for line in make_strategy(read_config(flat)).data.lines())


def test_no_evaluation_creates_no_evaluator(flat):
    assert make_strategy(read_config({**flat, "server.evaluate-every": 0})).evaluator is None


def test_server_without_test_samples_does_not_evaluate(flat):
    settings = {**flat, "server.evaluate-every": 1, "data.client-test": 0.25}
    strategy, on_clients = (
        make_strategy(read_config({**settings, "server.clients-evaluate-every": every})) for every in (0, 2)
    )
    assert strategy.evaluator is None
    assert any("nothing measures accuracy" in line for line in strategy.data.lines())
    assert not any("nothing measures accuracy" in line for line in on_clients.data.lines())


def test_boosted_objective_needs_ensemble(flat):
    assert make_strategy(read_config({**flat, "objective.name": "boosted"})).spec.ensemble == 0.2
    assert make_strategy(read_config(flat)).spec.ensemble == 0.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run.strategy": "fedsgd"}, "run.strategy is 'fedsgd', must be one of"),
        ({"clients.mix": "0.5,0.5"}, "clients.mix '0.5,0.5' must give one share, 0 or more, for each of the 3 tiers"),
        ({"network.name": "alexnet"}, "network.name is 'alexnet', must be one of"),
        ({"network.exits": "1,9"}, "network.exits is 1,9"),
        ({"data.name": "folder", "data.root": "/nowhere/at/all"}, "/nowhere/at/all, which is not a folder"),
        ({"clients.count": 5000, "server.evaluate-every": 1}, "5000 clients"),
    ],
)
def test_impossible_settings_are_reported_before_start(flat, changes, message):
    with pytest.raises(UserError) as caught:
        make_strategy(read_config({**flat, **changes}))
    assert message in str(caught.value)


def test_missing_gpu_is_reported(flat, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        make_strategy(read_config({**flat, "server.device": "cuda"}))


def test_mistakes_in_all_method_sections_are_reported_together(flat):
    with pytest.raises(UserError) as caught:
        read_config({**flat, "depthfl.temperature": -1.0, "darkdistill.batch": -1, "eefl.lr": 0.1})
    message = str(caught.value)
    assert "depthfl.temperature is -1.0" in message
    assert "batch is -1" in message
    assert "eefl.lr is unknown" in message

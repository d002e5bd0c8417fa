import pytest
import torch
import torch.nn.functional as F

from common.networks import NetworkSpec, build
from strategies.baselines.fedavg import LastExit


def test_loss_is_that_of_last_exit():
    network = build(NetworkSpec("lenet", 10, (1, 8, 8), width=3), seed=1)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    loss = LastExit().loss(network, x, y)
    assert loss.total.item() == pytest.approx(F.cross_entropy(network(x)[-1], y).item())
    assert loss.per_exit.shape == (3, 5)
    assert not loss.per_exit.requires_grad
    loss.total.backward()
    gradients = {key: p.grad is not None and bool(p.grad.any()) for key, p in network.named_parameters()}
    assert {key for key, reached in gradients.items() if not reached} == {
        f"exits.{e}.linear.{kind}" for e in (1, 2) for kind in ("weight", "bias")
    }


def test_shallow_exits_stay_untrained_and_rest_is_averaged(run_strategy):
    run = run_strategy({"run.strategy": "fedavg", "train.weight-decay": 0.0})
    assert all(record.clients == {3: 2} for record in run.records)
    initial = build(run.strategy.spec, 1).state_dict()
    for key, value in run.strategy.model.items():
        assert torch.equal(value, initial[key]) == key.startswith(("exits.1", "exits.2")), key


def test_objective_section_does_not_apply(run_strategy):
    plain = run_strategy({"run.strategy": "fedavg"})
    boosted = run_strategy({"run.strategy": "fedavg", "objective.name": "boosted"})
    assert boosted.strategy.spec.ensemble == 0.0
    assert all(torch.equal(boosted.strategy.model[k], v) for k, v in plain.strategy.model.items())

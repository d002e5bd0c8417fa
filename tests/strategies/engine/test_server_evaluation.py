import json

import pytest
import torch

from common.data import DataConfig, load, normalizer
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.networks import NetworkSpec, build
from common.networks.cost import cost_table
from common.paths import cache_root
from strategies.engine.server_evaluation import ServerEvaluator

DATA = DataConfig()
CPU = torch.device("cpu")


@pytest.fixture
def source():
    return load(DATA, cache_root())


@pytest.fixture
def network():
    """Return LeNet after a few steps, so that its exits differ."""
    network = build(NetworkSpec("lenet", 10, (1, 8, 8)), seed=1)
    train = load(DATA, cache_root()).train
    x, y = normalizer(DATA, 1)(train.inputs[:300]), train.labels[:300]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(25):
        optimizer.zero_grad()
        sum(torch.nn.functional.cross_entropy(z, y) for z in network(x)).backward()
        optimizer.step()
    return network


def evaluator(source, **changes) -> ServerEvaluator:
    options = {
        "validation": source.train.subset(range(300, 500)), "test": source.test.subset(range(150)),
        "normalize": normalizer(DATA, 1), "device": CPU, "batch_size": 64, "accuracy_loss": 0.02,
    }  # fmt: skip
    return ServerEvaluator(**(options | changes))


def macs(network) -> list[float]:
    costs = cost_table(network)
    return [float(costs.macs(e)) for e in range(3)]


def accuracies(network, images) -> list[float]:
    with torch.inference_mode():
        outputs = network.eval()(normalizer(DATA, 1)(images.inputs))
    return [int((z.argmax(1) == images.labels).sum()) / len(images) for z in outputs]


def test_every_exit_is_scored_on_test_and_validation(source, network):
    result = evaluator(source).evaluate(network)
    assert result["exits"] == accuracies(network, source.test.subset(range(150)))
    assert result["validation"] == accuracies(network, source.train.subset(range(300, 500)))
    assert result["mean"] == pytest.approx(sum(result["exits"]) / 3)
    assert set(result) == {"exits", "mean", "validation"}


def test_batch_size_changes_nothing(source, network):
    results = [evaluator(source, batch_size=size).evaluate(network)["exits"] for size in (1, 7, 150, 1000)]
    assert results.count(results[0]) == 4


def test_evaluation_does_not_change_network(source, network):
    before = {k: v.clone() for k, v in network.state_dict().items()}
    network.train()
    evaluator(source).evaluate(network, macs(network))
    assert network.training
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_last_evaluation_calibrates_and_computes_curve(source, network):
    judge = evaluator(source)
    result = judge.evaluate(network, macs(network))
    assert json.dumps(json.loads(json.dumps(result))) == json.dumps(result)
    assert result["exit_macs"] == macs(network)
    assert result["exit_macs"] == sorted(result["exit_macs"])
    found = result["calibrated"]
    policy = ThresholdPolicy(tuple(found["thresholds"]))
    test = source.test.subset(range(150))
    with torch.inference_mode():
        network.eval()
        left = network.infer(normalizer(DATA, 1)(test.inputs), policy)
    assert found["accuracy"] == pytest.approx((left.logits.argmax(1) == test.labels).double().mean().item())
    assert found["exit_histogram"] == torch.bincount(left.exits, minlength=3).tolist()
    assert found["mean_macs"] == pytest.approx(
        sum(n * m for n, m in zip(found["exit_histogram"], result["exit_macs"], strict=True)) / 150
    )
    assert judge.policy.thresholds == policy.thresholds
    assert all(result["exit_macs"][0] <= point["mean_macs"] <= result["exit_macs"][-1] for point in result["budgeted"])


def test_thresholds_ignore_test_images(source, network):
    one, two = evaluator(source), evaluator(source, test=source.test.subset(range(150, 200)))
    first, second = one.evaluate(network, macs(network)), two.evaluate(network, macs(network))
    assert first["exits"] != second["exits"]
    assert one.policy == two.policy
    assert [p["thresholds"] for p in first["budgeted"]] == [p["thresholds"] for p in second["budgeted"]]


def test_allowed_loss_bounds_accuracy_loss_of_early_exits(source, network):
    strict, lax = evaluator(source, accuracy_loss=0.0), evaluator(source, accuracy_loss=0.9)
    cheap, dear = lax.evaluate(network, macs(network)), strict.evaluate(network, macs(network))
    assert cheap["calibrated"]["mean_macs"] < dear["calibrated"]["mean_macs"]


def test_missing_validation_images_are_reported(source, network):
    with pytest.raises(UserError, match="no samples"):
        evaluator(source, validation=source.train.subset([])).evaluate(network)

import math

import pytest
import torch
import torch.nn.functional as F

from common.config import load_config
from common.errors import UserError
from common.networks import NetworkSpec, build
from strategies.baselines.depthfl import DepthFLSettings, SelfDistillation, mutual_distillation


def kl(teacher, student) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def logits(*probabilities) -> list[torch.Tensor]:
    return [torch.tensor([p]).log() for p in probabilities]


def test_distillation_between_two_exits():
    a, b = (0.5, 0.5), (0.9, 0.1)
    assert mutual_distillation(logits(a, b), 1.0).item() == pytest.approx(kl(a, b) + kl(b, a), rel=1e-5)


def test_distillation_of_three_exits_averages_other_two():
    a, b, c = (0.5, 0.5), (0.9, 0.1), (0.2, 0.8)
    expected = sum(kl(t, s) for s in (a, b, c) for t in (a, b, c)) / 2
    assert mutual_distillation(logits(a, b, c), 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_distillation_is_averaged_over_batch():
    z = [torch.cat(pair) for pair in zip(logits((0.5, 0.5), (0.9, 0.1)), logits((0.3, 0.7), (0.3, 0.7)), strict=True)]
    expected = (kl((0.5, 0.5), (0.9, 0.1)) + kl((0.9, 0.1), (0.5, 0.5))) / 2
    assert mutual_distillation(z, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_temperature_softens_and_keeps_the_scale():
    a, b = (0.5, 0.5), (0.9, 0.1)
    root = [math.sqrt(p) for p in b]
    soft = [p / sum(root) for p in root]
    assert mutual_distillation(logits(a, b), 2.0).item() == pytest.approx(4 * (kl(a, soft) + kl(soft, a)), rel=1e-5)


def test_single_or_equal_exits_have_zero_distillation():
    assert mutual_distillation(logits((0.3, 0.7)), 1.0).item() == 0
    assert mutual_distillation(logits((0.3, 0.7), (0.3, 0.7)), 1.0).item() == pytest.approx(0, abs=1e-7)


def test_teacher_gets_no_gradient():
    z = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    mutual_distillation(z, 1.0).backward()
    own = [F.softmax(part.detach(), dim=1) for part in z]
    for e, part in enumerate(z):
        # d KL(p_j || p_e) / d z_e = p_e - p_j
        expected = sum(own[e] - own[j] for j in range(3) if j != e) / 2 / 4
        assert torch.allclose(part.grad, expected, atol=1e-6)


def test_loss_adds_exits_and_distillation():
    network = build(NetworkSpec("lenet", 10, (1, 8, 8), width=3), seed=1)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    loss = SelfDistillation(0.5, 1.0).loss(network, x, y)
    outputs = network(x)
    exits = sum(F.cross_entropy(z, y) for z in outputs)
    assert loss.total.item() == pytest.approx((exits + 0.5 * mutual_distillation(outputs, 1.0)).item(), rel=1e-6)
    assert loss.per_exit.shape == (3, 5)
    assert not loss.per_exit.requires_grad


@pytest.mark.parametrize(("round_", "weight"), [(1, 2 * math.exp(-3.2)), (3, 2 * math.exp(-0.8)), (5, 2.0), (9, 2.0)])
def test_distillation_weight_ramps_up(round_, weight):
    assert DepthFLSettings(kd_weight=2.0, ramp_up=5).weight(round_) == pytest.approx(weight)
    assert DepthFLSettings(kd_weight=2.0).weight(round_) == 2.0


def test_invalid_settings_are_reported():
    with pytest.raises(UserError) as caught:
        load_config({"depthfl.kd-weight": -1.0, "depthfl.temperature": 0.0, "depthfl.ramp-up": -3}, [DepthFLSettings])
    assert str(caught.value).count("\n  - ") == 3


def test_zero_distillation_equals_eefl_bit_for_bit(run_strategy):
    eefl = run_strategy().strategy.model
    plain = run_strategy({"run.strategy": "depthfl", "depthfl.kd-weight": 0.0}).strategy.model
    distilled = run_strategy({"run.strategy": "depthfl"}).strategy.model
    assert all(torch.equal(plain[k], v) for k, v in eefl.items())
    assert not any(torch.equal(distilled[k], v) for k, v in eefl.items())


def test_grouping_changes_no_bit(run_strategy):
    changes = {"run.strategy": "depthfl", "depthfl.ramp-up": 2, "objective.name": "boosted"}
    one = run_strategy(changes)
    two = run_strategy({**changes, "clients.per-node": 2}, [{"partition-id": p} for p in range(3)])
    assert one.strategy.spec.ensemble == 0.0
    assert all(torch.equal(two.strategy.model[k], v) for k, v in one.strategy.model.items())
    assert one.records[-1].clients == {1: 2, 2: 2, 3: 2}

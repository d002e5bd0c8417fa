import math

import pytest
import torch
import torch.nn.functional as F

from common.networks import NetworkSpec, build
from common.settings import read_section
from common.storage.model_file import load_model
from strategies.baselines.reefl import BestExitTeaches, ReeFLSettings, distillation
from tests.support.personal_runs import same

REEFL = {"run.strategy": "reefl", "reefl.width": 8}
LENET = NetworkSpec("lenet", 10, (1, 8, 8), width=3, recurrent=8)


def kl(teacher, student) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def logits(*probabilities) -> list[torch.Tensor]:
    return [torch.tensor([p]).log() for p in probabilities]


def test_teacher_teaches_all_other_exits():
    a, b, c = (0.5, 0.5), (0.9, 0.1), (0.2, 0.8)
    assert distillation(logits(a, b, c), torch.tensor(1), 1.0).item() == pytest.approx(kl(b, a) + kl(b, c), rel=1e-5)
    assert distillation(logits(a, b, c), torch.tensor(2), 1.0).item() == pytest.approx(kl(c, a) + kl(c, b), rel=1e-5)
    assert distillation(logits(a), torch.tensor(0), 1.0).item() == 0


def test_temperature_softens_and_keeps_the_scale():
    a, b = (0.5, 0.5), (0.9, 0.1)
    root = [math.sqrt(p) for p in b]
    soft = [p / sum(root) for p in root]
    assert distillation(logits(a, b), torch.tensor(1), 2.0).item() == pytest.approx(4 * kl(soft, a), rel=1e-5)


def test_distillation_is_averaged_over_batch_and_teacher_gets_no_gradient():
    z = [torch.randn(4, 3, requires_grad=True) for _ in range(3)]
    distillation(z, torch.tensor(0), 1.0).backward()
    own = [F.softmax(part.detach(), dim=1) for part in z]
    assert not z[0].grad.any()
    for e in (1, 2):
        assert torch.allclose(z[e].grad, (own[e] - own[0]) / 4, atol=1e-6)  # d KL(p_t || p_e) / d z_e = p_e - p_t


class Scripted(torch.nn.Module):
    """Returns two exits of binary logits whose cross-entropies for class 0 are given, batch by batch."""

    def __init__(self, *batches):
        super().__init__()
        self.batches = [[[math.exp(-loss), 1 - math.exp(-loss)] for loss in exits] for exits in batches]

    def forward(self, x):
        return [torch.tensor([p]).log() for p in self.batches.pop(0)]


def test_teacher_is_the_exit_with_the_lowest_running_loss():
    objective = BestExitTeaches(1.0, 1.0, 0.75)
    batches = [(0.4, 0.8), (1.0, 0.2), (0.9, 0.5)]  # running: (.4, .8), (.55, .65), (.6375, .6125)
    network, y = Scripted(*batches), torch.tensor([0])
    for losses, teacher in zip(batches, (0, 0, 1), strict=True):
        p = [(math.exp(-loss), 1 - math.exp(-loss)) for loss in losses]
        total = objective.loss(network, torch.zeros(1), y).total.item()
        assert total == pytest.approx(sum(losses) + kl(p[teacher], p[1 - teacher]), rel=1e-5)
    torch.testing.assert_close(objective.running, torch.tensor([0.6375, 0.6125]))


def test_loss_adds_exits_and_weighted_distillation():
    network = build(LENET, seed=1)
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    loss = BestExitTeaches(0.5, 2.0, 0.8).loss(network, x, y)
    outputs = network(x)
    losses = [F.cross_entropy(z, y).item() for z in outputs]
    expected = sum(losses) + 0.5 * distillation(outputs, torch.tensor(losses).argmin(), 2.0).item()
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    assert loss.per_exit.shape == (3, 5)
    assert not loss.per_exit.requires_grad


def test_every_client_trains_the_shared_classifier_and_all_average_it(prepare_run):
    run = prepare_run({**REEFL, "run.rounds": 1, "clients.mix": "1,0,0"})
    strategy = run.strategy
    shared = {key for key in strategy.model if key.startswith("recurrent.")}
    assert shared
    assert all(shared <= set(layout.keys) for layout in strategy.uploads.values())
    initial = {key: value.clone() for key, value in strategy.model.items()}
    strategy.start(run.grid)
    for key, value in strategy.model.items():
        held = key.startswith(("units.0", "exits.1", "recurrent."))
        assert torch.equal(value, initial[key]) != held, key


def test_grouping_changes_no_bit(run_strategy):
    one = run_strategy(REEFL)
    two = run_strategy({**REEFL, "clients.per-node": 2}, [{"partition-id": p} for p in range(3)])
    assert same(two.strategy.model, one.strategy.model)
    assert one.records[-1].clients == {1: 2, 2: 2, 3: 2}
    assert not same(run_strategy({**REEFL, "reefl.kd-weight": 0.0}).strategy.model, one.strategy.model)


def test_run_learns(run_strategy):
    run = run_strategy({
        **REEFL, "run.rounds": 5, "data.limit": 800, "network.name": "resnet_slim", "network.width": 8,
        "reefl.width": 16, "clients.count": 8, "clients.per-round": 8, "clients.mix": "1,1,1,1", "train.epochs": 2,
        "train.lr": 0.02, "server.evaluate-every": 5,
    })  # fmt: skip
    assert run.records[-1].accuracy["mean"] > 0.5  # chance is 0.1
    assert run.records[-1].client_metrics["loss"] < run.records[0].client_metrics["loss"]


def test_checkpoint_and_stored_models_hold_the_shared_classifier(run_strategy, prepare_run, tmp_path):
    strategy = run_strategy({**REEFL, "server.evaluate-every": 1}).strategy
    resumed = prepare_run(REEFL).strategy
    model, tensors, values = strategy.checkpoint()
    resumed.restore(model, tensors, values)
    x = torch.randn(3, *strategy.spec.input_shape)
    expected = strategy.global_network().eval()(x)
    assert all(torch.equal(a, b) for a, b in zip(resumed.global_network().eval()(x), expected, strict=True))
    strategy.save_final(tmp_path / "final")
    stored = load_model(tmp_path)
    assert stored.policy == strategy.evaluator.policy
    assert all(torch.equal(a, b) for a, b in zip(stored.network(x), expected, strict=True))
    for depth in (1, 2, 3):
        part = load_model(tmp_path / "clients" / "test" / f"depth-{depth}").network
        assert len(part.exit_positions) == depth
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(part(x), expected[:depth], strict=True))


def test_objective_section_does_not_apply(run_strategy):
    boosted = run_strategy({**REEFL, "objective.name": "boosted"}).strategy
    assert boosted.spec.ensemble == 0.0
    assert same(boosted.model, run_strategy(REEFL).strategy.model)


def test_invalid_settings_are_reported():
    assert read_section(ReeFLSettings).problems == []
    assert read_section(ReeFLSettings, width=10).problems == ["reefl.width is 10, must be a multiple of 4"]
    wrong = read_section(ReeFLSettings, kd_weight=-1.0, temperature=0.0, ramp_up=-1, decay=1.0, width=0).problems
    assert len(wrong) == 5

import math

import pytest
import torch
import torch.nn.functional as F

from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.base import ExitOutputs
from common.objectives import Objective
from strategies.cafedistill.objective import Distillation, distillation
from strategies.cafedistill.settings import CAFEDistillSettings

Y = torch.tensor([0, 1, 2, 3, 4])


def kl(teacher, student) -> float:
    return sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))


def logits(*probabilities) -> torch.Tensor:
    return torch.tensor(probabilities).log()


@pytest.fixture
def network() -> EarlyExitNetwork:
    return build(NetworkSpec("lenet", 10, (1, 8, 8), width=3), seed=1)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def grads(network: EarlyExitNetwork, objective: Objective, x: torch.Tensor) -> dict[str, torch.Tensor | None]:
    network.zero_grad()
    objective.loss(network, x, Y).total.backward()
    return {name: p.grad for name, p in network.named_parameters()}


def test_distillation_equals_values_by_hand():
    teacher, near, far = (0.9, 0.1), (0.8, 0.2), (0.1, 0.9)
    result = distillation([logits(near), logits(far)], logits(teacher), 1.0)
    assert result.item() == pytest.approx(kl(teacher, near) + kl(teacher, far), rel=1e-5)
    # 0.9 : 0.1 softens to 3 : 1 at T = 2, and 1 : 1 stays
    halves = distillation([logits((0.5, 0.5))], logits(teacher), 2.0)
    assert halves.item() == pytest.approx(4 * kl((0.75, 0.25), (0.5, 0.5)), rel=1e-5)


def test_distillation_is_a_batch_mean():
    teacher, near, far = (0.9, 0.1), (0.8, 0.2), (0.1, 0.9)
    both = distillation([logits(near, far)], logits(teacher, teacher), 1.0)
    assert both.item() == pytest.approx((kl(teacher, near) + kl(teacher, far)) / 2, rel=1e-5)


def test_distillation_without_students_is_zero():
    assert distillation([], logits((0.9, 0.1)), 2.0).item() == 0


def test_distillation_gives_a_gradient_to_students_only():
    teacher = torch.randn(4, 3, requires_grad=True)
    student = torch.randn(4, 3, requires_grad=True)
    distillation([student], teacher, 2.0).backward()
    assert teacher.grad is None
    # d T^2 KL / d z = T (p_student - p_teacher)
    expected = 2 * (F.softmax(student.detach() / 2, 1) - F.softmax(teacher.detach() / 2, 1)) / 4
    assert torch.allclose(student.grad, expected, atol=1e-6)


class Fixed:
    """A network of three exits with given logits, whatever it sees."""

    def __init__(self, *exits: torch.Tensor) -> None:
        self.outputs = ExitOutputs([*exits], [torch.zeros(len(exits[0]), 2)] * len(exits), exits[0])

    def forward_exits(self, x: torch.Tensor) -> ExitOutputs:
        return self.outputs


@pytest.mark.parametrize(
    ("division", "students", "divisor"),
    [("all", 0, 3), ("all", 1, 3), ("all", 2, 3), ("admitted", 0, 1), ("admitted", 1, 2), ("admitted", 2, 3)],
)
def test_cross_entropies_are_divided_by_all_or_by_admitted_exits(division, students, divisor):
    network = Fixed(logits((0.5, 0.5)), logits((0.25, 0.75)), logits((0.125, 0.875)))
    settings = CAFEDistillSettings(kd_weight=0.0, ce_division=division)
    total = Distillation(settings, students).loss(network, torch.zeros(1), torch.tensor([0])).total.item()
    # the last exit's 3 ln 2, and those of the students that are unlocked: ln 2 and 2 ln 2
    assert total == pytest.approx(math.log(2) * (3 + [0, 1, 3][students]) / divisor, rel=1e-6)


def test_division_by_admitted_exits_leaves_the_distillation_as_it_is():
    network = Fixed(logits((0.5, 0.5)), logits((0.25, 0.75)), logits((0.9, 0.1)))
    settings = CAFEDistillSettings(kd_weight=1.0, ce_weight=0.0, ce_division="admitted", temperature=1.0)
    total = Distillation(settings, 1).loss(network, torch.zeros(1), torch.tensor([0])).total.item()
    assert total == pytest.approx(kl((0.9, 0.1), (0.5, 0.5)), rel=1e-5)


@pytest.mark.parametrize(
    ("legacy", "students", "labelled", "distilled"),
    [(False, 0, 0, 0), (False, 1, 1, 1), (False, 2, 2, 2), (True, 0, 0, 1), (True, 1, 0, 1), (True, 2, 1, 2)],
)
def test_loss_of_three_exits_equals_its_formula(network, x, legacy, students, labelled, distilled):
    settings = CAFEDistillSettings(
        ce_weight=0.7, kd_weight=0.3, temperature=2.0, legacy_offset=legacy, ce_division="all"
    )
    loss = Distillation(settings, students).loss(network, x, Y)
    z = network(x)
    ce = sum(F.cross_entropy(z[e], Y) for e in [*range(labelled), 2]) / 3
    target = F.softmax(z[2] / 2, 1)
    kd = sum(4 * (target * (target.log() - F.log_softmax(z[e] / 2, 1))).sum(1).mean() for e in range(distilled))
    assert loss.total.item() == pytest.approx((0.7 * ce + 0.3 * kd).item(), rel=1e-5)
    assert loss.per_exit.shape == (3, 5)
    assert loss.per_exit[1].tolist() == F.cross_entropy(z[1], Y, reduction="none").tolist()
    assert not loss.per_exit.requires_grad


def test_loss_without_students_is_the_share_of_the_last_exit(network, x):
    loss = Distillation(CAFEDistillSettings(ce_division="all"), 0).loss(network, x, Y)
    assert loss.total.item() == pytest.approx(F.cross_entropy(network(x)[-1], Y).item() / 3, rel=1e-6)


def test_distillation_moves_neither_locked_nor_last_head(network, x):
    plain = grads(network, Distillation(CAFEDistillSettings(kd_weight=0.0), 1), x)
    distilled = grads(network, Distillation(CAFEDistillSettings(kd_weight=5.0), 1), x)
    first, second, last = (f"exits.{position}.linear.weight" for position in network.exit_positions)
    assert not torch.equal(distilled[first], plain[first])
    assert distilled[second] is None or distilled[second].count_nonzero() == 0
    assert distilled[last].count_nonzero() > 0
    assert torch.equal(distilled[last], plain[last])


def test_loss_without_cross_entropy_trains_students_only(network, x):
    only_teacher = grads(network, Distillation(CAFEDistillSettings(ce_weight=0.0), 2), x)
    assert not only_teacher[f"exits.{network.exit_positions[-1]}.linear.weight"].any()
    assert only_teacher[f"exits.{network.exit_positions[0]}.linear.weight"].any()


@pytest.mark.parametrize("legacy", [False, True])
def test_network_with_one_exit_learns_from_labels_only(network, x, legacy):
    shallow = network.prefix(1)
    assert len(shallow.exit_positions) == 1
    loss = Distillation(CAFEDistillSettings(legacy_offset=legacy), 2).loss(shallow, x, Y)
    assert loss.total.item() == pytest.approx(F.cross_entropy(shallow(x)[0], Y).item(), rel=1e-6)


def test_teacher_may_mix_in_other_heads(network, x):
    torch.manual_seed(0)
    other = torch.nn.Linear(network.architecture.widths[network.exit_positions[0] - 1], 10)

    def mixed(outputs):
        return 0.75 * outputs.logits[-1] + 0.25 * other(outputs.features[0])

    settings = CAFEDistillSettings(ce_weight=0.0, kd_weight=1.0)
    loss = Distillation(settings, 1, mixed).loss(network, x, Y)
    outputs = network.forward_exits(x)
    assert loss.total.item() == pytest.approx(distillation(outputs.logits[:1], mixed(outputs), 2.0).item(), rel=1e-6)
    assert loss.total.item() != pytest.approx(Distillation(settings, 1).loss(network, x, Y).total.item(), rel=1e-3)
    loss.total.backward()
    assert other.weight.grad is None


def test_features_of_every_exit_are_watched(network, x):
    seen = []
    Distillation(CAFEDistillSettings(), 0, watch=seen.append).loss(network, x, Y)
    assert [tuple(feature.shape) for feature in seen[0]] == [
        (5, network.architecture.widths[position - 1]) for position in network.exit_positions
    ]


def test_objective_has_no_state(network):
    assert Distillation(CAFEDistillSettings(), 1).state_dict() == {}

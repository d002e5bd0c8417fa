import math

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.classifier import OwnHeads
from strategies.distree.training.objective import JointLoss, activation_transfer, exit_weights, kd_loss, own_head_loss


@pytest.mark.parametrize("exits", [7, 3, 1])
def test_exit_weights_are_equal_by_default(exits: int) -> None:
    assert exit_weights((), exits).tolist() == [1.0] * exits


def test_given_exit_weights_are_scaled_to_mean_one() -> None:
    torch.testing.assert_close(exit_weights((1, 3), 2), torch.tensor([0.5, 1.5]))
    doubled = (1, 1, 2, 2, 2, 1, 1)
    torch.testing.assert_close(exit_weights(doubled, 7), torch.tensor(doubled) * 0.7)


def test_exit_weights_must_be_one_per_exit() -> None:
    with pytest.raises(UserError, match=r"distree.exit-weights names 2 exits, the students have 3"):
        exit_weights((1, 1), 3)


# softmax(z / T) with T = 2: students (1/2, 1/2), the teacher (3/4, 1/4)
STUDENT = torch.tensor([[5.0, 5.0]])
TEACHER = torch.tensor([[2 * math.log(3), 0.0]])
DIVERGENCE = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)


def test_distillation_by_hand() -> None:
    # 2 alpha T^2 / classes = 2 * 0.9 * 4 / 2
    assert float(kd_loss(STUDENT, TEACHER, None, 0.9, 2.0)) == pytest.approx(3.6 * DIVERGENCE)
    with_labels = kd_loss(STUDENT, TEACHER, torch.tensor([1]), 0.9, 2.0)
    assert float(with_labels) == pytest.approx(3.6 * DIVERGENCE + 0.1 * math.log(2))


def test_distillation_is_a_mean_over_the_batch() -> None:
    student, teacher = torch.cat([STUDENT, TEACHER]), torch.cat([TEACHER, TEACHER])
    assert float(kd_loss(student, teacher, None, 0.9, 2.0)) == pytest.approx(3.6 * DIVERGENCE / 2)


def test_activation_transfer_by_hand() -> None:
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[10.0, 0.0], [0.0, 7.0], [1.0, 0.0]])
    # (.6, .8) - (1, 0): .16 + .64; the same direction: 0; a silent student: 1
    assert float(activation_transfer(student, teacher)) == pytest.approx((0.8 + 0 + 1) / 3)


def test_gradient_of_a_silent_student_is_finite() -> None:
    student = torch.zeros(1, 2, requires_grad=True)
    activation_transfer(student, torch.tensor([[1.0, 0.0]])).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.fixture
def two_students() -> dict[int, list[Tensor]]:
    """Features at two exits: the first student's transfer is .8 and 0, the second's 2 and 0."""
    return {
        1: [torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0]])],
        2: [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])],
    }


BLOCKS = {1: torch.tensor([[10.0, 0.0]]), 2: torch.tensor([[0.0, 1.0]])}


def test_joint_loss_by_hand(two_students: dict[int, list[Tensor]]) -> None:
    joint_loss = JointLoss(torch.tensor([0.5, 1.5]), alpha=0.9, temperature=2.0, beta=10.0)
    loss = joint_loss([STUDENT, TEACHER], two_students, TEACHER, BLOCKS, None)
    assert float(loss) == pytest.approx((0.5 * (3.6 * DIVERGENCE + 10 * (0.8 + 2) / 2) + 1.5 * 0) / 2)


def test_student_alone_keeps_its_weight_in_the_loss(two_students: dict[int, list[Tensor]]) -> None:
    alone = {2: two_students[2]}
    joint_loss = JointLoss(torch.ones(2), alpha=0.9, temperature=2.0, beta=10.0)
    loss = joint_loss([TEACHER, TEACHER], alone, TEACHER, BLOCKS, None)
    assert float(loss) == pytest.approx(10 * 2 / 2 / 2)


def test_own_heads_learn_and_nothing_else_does() -> None:
    own = OwnHeads({1: 2, 2: 1}, num_exits=2, num_classes=2)
    features = {1: [torch.tensor([[1.0, 2.0]], requires_grad=True)] * 2, 2: [torch.ones(1, 1, requires_grad=True)] * 2}
    teacher = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = own_head_loss(own, features, teacher, torch.tensor([1]))
    assert loss.item() == 0
    loss.backward()
    # (softmax - target) times the features: (1/2, -1/2) for each feature of 1, and twice that for 2
    assert own.weights["1"].grad is not None
    assert own.weights["1"].grad.tolist() == [[[0.5, 1.0], [-0.5, -1.0]]] * 2
    assert own.biases["2"].grad is not None
    assert own.biases["2"].grad.tolist() == [[0.5, -0.5]] * 2
    assert features[1][0].grad is None
    assert features[2][0].grad is None
    own.zero_grad()
    own_head_loss(own, features, teacher.detach(), None).backward()
    torch.testing.assert_close(own.biases["2"].grad, torch.tensor([[-0.25, 0.25]] * 2))

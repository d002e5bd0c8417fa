import pytest
import torch

from strategies.darkdistill.relational import rkd_angle, rkd_distance


def test_distance_of_three_points_equals_a_value_by_hand() -> None:
    # Relative distances 0.5, 1.5, 1 against 0.75, 1.5, 0.75: four of nine entries differ by a quarter.
    student = torch.tensor([[0.0], [1.0], [3.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert rkd_distance(student, teacher).item() == pytest.approx(4 * 0.5 * 0.25**2 / 9, abs=1e-7)


def test_angle_of_a_triangle_and_a_line_equals_a_value_by_hand() -> None:
    # Cosines 0, sqrt(1/2), sqrt(1/2) against 1, -1, 1: smooth L1 is 0.5, 1.2071.., 0.0428.., twice each, of 27.
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0], [1.0], [2.0]])
    assert rkd_angle(student, teacher).item() == pytest.approx(3.5 / 27, abs=1e-6)


def test_scale_rotation_and_shift_give_zero_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(8, 3, generator=rng)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=rng))
    teacher = 2.5 * student @ rotation + 4
    assert rkd_distance(student, teacher).item() < 1e-10
    assert rkd_angle(student, teacher).item() < 1e-10
    assert rkd_distance(student, teacher.square()).item() > 1e-3
    assert rkd_angle(student, teacher.square()).item() > 1e-3


def test_gradients_are_finite_for_coincident_samples() -> None:
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 1.0], [5.0, 1.0]], requires_grad=True)
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    (rkd_distance(student, teacher) + rkd_angle(student, teacher)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 10
    assert teacher.grad is None


def test_batch_of_equal_samples_gives_zero_gradient() -> None:
    student = torch.ones(4, 2, requires_grad=True)
    teacher = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    (rkd_distance(student, teacher) + rkd_angle(student, teacher)).backward()
    assert student.grad is not None
    assert torch.equal(student.grad, torch.zeros(4, 2))


def test_too_few_samples_give_zero_loss() -> None:
    two = torch.tensor([[1.0], [4.0]], requires_grad=True)
    assert rkd_distance(two[:1], two[:1] + 1).item() == 0
    assert rkd_distance(two[:0], two[:0]).item() == 0
    assert rkd_angle(two, two.square()).item() == 0

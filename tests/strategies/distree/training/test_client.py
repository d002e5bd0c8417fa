"""Local training: the lesson that a client keeps, and its step, compared with the formulas."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.config import Value, load_config
from common.data import load, normalizer
from common.data.clients import ClientData
from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.storage.client_store import ClientState
from common.weights.flat import FlatModel, FlatState
from strategies.distree.model.parts import STUDENTS
from strategies.distree.model.students import Students, build_students, students_spec
from strategies.distree.training.client import FEATURES, IMAGES, LABELS, LOGITS, TEACHER, UNKNOWN, DistrEELocal
from strategies.method import Job
from strategies.registry import all_settings

CPU = torch.device("cpu")
DIGITS = (1, 8, 8)
TEACHER_SPEC = NetworkSpec("lenet", 10, DIGITS)
PARTITION = ((7, 3, 90), (11, 2), (40, 41, 42, 5))  # of 120 filters
SPEC = students_spec(TEACHER_SPEC, NetworkSpec("lenet", 10, DIGITS, width=2), PARTITION)
ALPHA, T, BETA, LR, DECAY = 0.7, 3.0, 5.0, 0.05, 0.01
WEIGHTS = (1.0, 3.0, 2.0)
FLAT: dict[str, Value] = {
    "run.strategy": "distree", "distree.alpha": ALPHA, "distree.temperature": T, "distree.beta": BETA,
    "distree.students": 3, "distree.exit-weights": "1,3,2", "train.batch-size": 12, "train.weight-decay": DECAY,
}  # fmt: skip


@pytest.fixture
def teacher() -> EarlyExitNetwork:
    return build(TEACHER_SPEC, seed=5).eval()


@pytest.fixture
def digits() -> tuple[Tensor, Tensor]:
    """Twelve real images, normalised, and their labels: one batch."""
    config = load_config(FLAT, all_settings())
    images = load(config.data, None).train.subset(range(12))
    return normalizer(config.data, 1)(images.inputs), images.labels


@pytest.fixture
def make_job(teacher: EarlyExitNetwork, digits: tuple[Tensor, Tensor]) -> Callable[..., Job]:
    def make(number: int = 2, changes: Mapping[str, Value] | None = None, **fields: Any) -> Job:
        part = STUDENTS.take(build_students(SPEC, seed=3), number)
        data = ClientData(*digits, digits[0][:0], digits[1][:0], digits[0][:0], digits[1][:0])
        job = Job(
            4, number, 1, load_config({**FLAT, **(changes or {})}, all_settings()), FlatModel(part), CPU, lambda: data,  # type: ignore[arg-type]
            round_values={"lr": LR}, states={TEACHER: FlatState.of(teacher.state_dict())},
        )  # fmt: skip
        return replace(job, **fields)

    return make


def by_hand(
    part: Students, number: int, x: Tensor, y: Tensor | None, filters: Tensor, answers: Tensor
) -> dict[str, Tensor]:
    """Return the parameters after one step of gradient descent, from the formulas alone."""
    student, blocks, bias = part.student(number), part.classifier.blocks, part.classifier.bias
    soft = (answers / T).softmax(1)
    total = torch.zeros(())
    for j, own in enumerate(student(x)):
        z = bias[j] + own @ blocks[str(number)][j].T
        for other, filter_numbers in enumerate(PARTITION, start=1):
            if other != number:
                z = z + filters[:, list(filter_numbers)] @ blocks[str(other)][j].T
        distillation = (soft * (soft.log() - (z / T).log_softmax(1))).sum(1).mean()
        loss = 2 * ALPHA * T**2 / 10 * distillation
        if y is not None:
            loss = loss - (1 - ALPHA) * z.log_softmax(1)[torch.arange(len(y)), y].mean()
        pair = own, filters[:, list(PARTITION[number - 1])]
        student_way, teacher_way = (f / f.norm(dim=1, keepdim=True).clamp_min(1e-12) for f in pair)
        transfer = ((student_way - teacher_way) ** 2).sum(1).mean()
        total = total + WEIGHTS[j] / 2 * (loss + BETA / 3 * transfer)
    total = total / 3
    trained = {key: p for key, p in part.named_parameters() if p.requires_grad and not key.startswith("own.")}
    gradients = torch.autograd.grad(total, list(trained.values()))
    found = {key: (p - LR * (g + DECAY * p)).detach() for (key, p), g in zip(trained.items(), gradients, strict=True)}
    # own heads start at 0, where every class has 1/10: the gradient is (1/10 - target), times the features
    target = answers.softmax(1) if y is None else torch.nn.functional.one_hot(y, 10)
    errors = (0.1 - target) / len(x)
    found[f"own.weights.{number}"] = -LR * torch.stack([errors.T @ own for own in student(x)]).detach()
    found[f"own.biases.{number}"] = -LR * errors.sum(0).expand(len(WEIGHTS), 10)
    return found | {"loss": total.detach()}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_one_step_equals_the_formula(
    make_job: Callable[..., Job], teacher: EarlyExitNetwork, digits: tuple[Tensor, Tensor], number: int
) -> None:
    """The client uses its own student, and the teacher's filters, clipped at 0, for the other students."""
    with torch.no_grad():
        outputs = teacher.forward_exits(digits[0])
    part = STUDENTS.take(build_students(SPEC, seed=3), number)
    expected = by_hand(part, number, *digits, outputs.features[-1].clamp_min(0), outputs.logits[-1])
    outcome = DistrEELocal().train(job := make_job(number))
    assert outcome.state is not None
    found = outcome.state.state_dict()
    assert set(found) == set(expected) - {"loss"}
    before = dict(part.named_parameters())
    for key in set(expected) - {"loss"}:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6)
        assert not torch.equal(found[key], before[key])
    assert outcome.metrics["loss"] == pytest.approx(float(expected["loss"]), rel=1e-4)
    for other in {1, 2, 3} - {number}:
        block = f"classifier.blocks.{other}"
        assert torch.equal(job.model.module.state_dict()[block], before[block])


def test_teacher_answers_are_kept_and_reused(
    make_job: Callable[..., Job], teacher: EarlyExitNetwork, digits: tuple[Tensor, Tensor]
) -> None:
    first = DistrEELocal().train(make_job())
    assert first.kept is not None
    with torch.no_grad():
        outputs = teacher.forward_exits(digits[0])
    used = [f for part in PARTITION for f in part]
    assert set(first.kept.tensors) == {FEATURES, LOGITS}
    torch.testing.assert_close(first.kept.tensors[FEATURES], outputs.features[-1].clamp_min(0)[:, used])
    torch.testing.assert_close(first.kept.tensors[LOGITS], outputs.logits[-1])
    again = DistrEELocal().train(make_job(states={}, kept=first.kept))
    assert again.kept is None
    assert first.state is not None
    assert again.state is not None
    assert torch.equal(again.state.floats, first.state.floats)


def test_message_without_a_teacher_is_refused(make_job: Callable[..., Job]) -> None:
    with pytest.raises(UserError, match="holds no teacher, and this client has not kept the teacher's answers"):
        DistrEELocal().train(make_job(states={}))


def test_changed_images_are_refused(make_job: Callable[..., Job]) -> None:
    kept = ClientState({FEATURES: torch.rand(11, 9), LOGITS: torch.rand(11, 10)})
    with pytest.raises(UserError, match="client 4 has 12 images but the teacher's answers to 11"):
        DistrEELocal().train(make_job(kept=kept))


@pytest.mark.parametrize("labelled", [True, False])
def test_public_images_replace_own_images(
    make_job: Callable[..., Job], teacher: EarlyExitNetwork, labelled: bool
) -> None:
    config = load_config(FLAT, all_settings())
    public = load(config.data, None).train.subset(range(50, 60))
    x = normalizer(config.data, 1)(public.inputs)
    with torch.no_grad():
        outputs = teacher.forward_exits(x)
    filters = outputs.features[-1].clamp_min(0)
    used = [f for part in PARTITION for f in part]
    labels = public.labels if labelled else torch.full_like(public.labels, UNKNOWN)
    sent = {IMAGES: public.inputs, LABELS: labels, FEATURES: filters[:, used], LOGITS: outputs.logits[-1]}
    entries: dict[str, np.ndarray] = {name: value.numpy() for name, value in sent.items()}
    part = STUDENTS.take(build_students(SPEC, seed=3), 2)
    expected = by_hand(part, 2, x, public.labels if labelled else None, filters, outputs.logits[-1])
    outcome = DistrEELocal().train(make_job(states={}, client_arrays=entries))
    assert outcome.state is not None
    assert outcome.kept is not None
    for key, value in outcome.state.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)
    assert set(outcome.kept.tensors) == {FEATURES, LOGITS, IMAGES, LABELS}
    later = DistrEELocal().train(make_job(states={}, kept=outcome.kept))
    assert later.state is not None
    assert torch.equal(later.state.floats, outcome.state.floats)


def test_loss_falls(make_job: Callable[..., Job]) -> None:
    short, long = (DistrEELocal().train(make_job(changes={"train.epochs": e})).metrics["loss"] for e in (1, 60))
    assert long < 0.7 * short

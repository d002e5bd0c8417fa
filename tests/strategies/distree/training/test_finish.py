import pytest
import torch

from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from strategies.distree.exits.calibration import operate, with_gates
from strategies.distree.exits.policies import CALIBRATED, RULES, Gate, LastExit
from strategies.distree.model.students import Students, build_students
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.finish import check_images, finish_students, measure, training_id
from tests.strategies.distree.devices import PIXELS, SPEC

CPU = torch.device("cpu")
IMAGES = SampleSet(PIXELS, torch.arange(6) % 5, tuple("abcde"))


def named(students: Students, max_accuracy_loss: float = 0.0) -> str:
    settings = DistrEESettings(max_accuracy_loss=max_accuracy_loss)
    stored, _ = finish_students(students, IMAGES, Normalizer((0.5,) * 3, (0.25,) * 3), settings, CPU, "runs")
    return stored.run


def test_training_id_differs_between_trainings() -> None:
    first = named(build_students(SPEC, seed=2))
    assert first == named(build_students(SPEC, seed=2), max_accuracy_loss=0.5)
    assert first != named(build_students(SPEC, seed=3))
    assert first.startswith("runs-")


@torch.no_grad()
def test_training_id_covers_the_classifier() -> None:
    students = build_students(SPEC, seed=2)
    before, bias = training_id("runs", students), students.classifier.bias[0, 0].clone()
    students.classifier.bias[0, 0] += 1
    assert training_id("runs", students) != before
    students.classifier.bias[0, 0] = bias
    assert training_id("runs", students) == before
    assert training_id("others", students) != before


def many(count: int = 120) -> SampleSet:
    """Return images of random pixels, whose brightness is their class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 5
    pixels = torch.rand(count, 3, 8, 8, generator=generator) * 80 + 40 * labels[:, None, None, None]
    return SampleSet(pixels.byte(), labels, tuple("abcde"))


def test_gate_is_fitted_stored_and_used() -> None:
    students, normalize = build_students(SPEC, seed=2), Normalizer((0.5,) * 3, (0.25,) * 3)
    students(normalize(many().inputs))  # running statistics
    settings = DistrEESettings(exit_rule="gate", max_accuracy_loss=0.2)
    stored, report = finish_students(students, many(), normalize, settings, CPU, "runs")
    assert set(stored.policies) >= {CALIBRATED, *RULES}
    gates = {k: policy for rung in (*stored.ladder, stored.policies["gate"]) for k, policy in rung.items()}
    assert {type(policy) for policy in gates.values()} <= {Gate, LastExit}
    assert stored.policies["gate"] == stored.policies[CALIBRATED]
    assert any(isinstance(policy, Gate) for policy in gates.values())
    # the report counts by gates that have not seen the image, as calibration does
    unseen = operate(stored.policies[CALIBRATED], with_gates(measure(students, many(), normalize, CPU)))
    assert (report[CALIBRATED]["cost"], report[CALIBRATED]["accuracy"]) == (unseen.cost, unseen.accuracy)
    assert unseen.loss + unseen.loss_error <= 0.2 + 1e-9
    assert unseen.cost < report["last"]["cost"]


def test_too_few_images_for_a_gate() -> None:
    students, normalize = build_students(SPEC, seed=2), Normalizer((0.5,) * 3, (0.25,) * 3)
    stored, _ = finish_students(students, many(60), normalize, DistrEESettings(), CPU, "runs")
    assert "gate" not in stored.policies
    with pytest.raises(UserError, match="100 or more validation images, there are 60"):
        finish_students(students, many(60), normalize, DistrEESettings(exit_rule="gate"), CPU, "runs")
    with pytest.raises(UserError, match="no validation images"):
        check_images(DistrEESettings(), 0)

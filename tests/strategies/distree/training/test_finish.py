import torch

from common.data.images import Normalizer, SampleSet
from strategies.distree.model.students import Students, build_students
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.finish import finish_students, training_id
from tests.strategies.distree.devices import PIXELS, SPEC

CPU = torch.device("cpu")
IMAGES = SampleSet(PIXELS, torch.arange(6) % 5, tuple("abcde"))


def named(students: Students, max_accuracy_loss: float = 0.0) -> str:
    settings = DistrEESettings(max_accuracy_loss=max_accuracy_loss)
    stored, _ = finish_students(students, IMAGES, Normalizer((0.5,) * 3, (0.25,) * 3), settings, CPU, "runs")
    return stored.run


def test_training_id_differs_between_trainings() -> None:
    assert named(build_students(SPEC, seed=2)) == named(build_students(SPEC, seed=2), max_accuracy_loss=0.5)
    assert named(build_students(SPEC, seed=2)) != named(build_students(SPEC, seed=3))
    assert named(build_students(SPEC, seed=2)).startswith("runs-")


@torch.no_grad()
def test_training_id_covers_the_classifier() -> None:
    students = build_students(SPEC, seed=2)
    before, bias = training_id("runs", students), students.classifier.bias[0, 0].clone()
    students.classifier.bias[0, 0] += 1
    assert training_id("runs", students) != before
    students.classifier.bias[0, 0] = bias
    assert training_id("runs", students) == before
    assert training_id("others", students) != before

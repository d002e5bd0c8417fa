from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from common.data.images import Normalizer
from common.errors import UserError
from common.networks import NetworkSpec, cost_table
from common.storage.files import read_tensors, write_tensors
from strategies.distree.exits.policies import CALIBRATED, FeatureDifference, Gate, LastExit, Random
from strategies.distree.model.stored import (
    FILE,
    StoredStudents,
    exit_macs,
    load_student,
    load_students,
    save_student,
    save_students,
    student_file,
)
from strategies.distree.model.students import Students, build_students, students_spec

BACKBONE = NetworkSpec("wrn16", 4, (3, 8, 8), exits=(1, 3, 7))
SPEC = students_spec(replace(BACKBONE, width=2), BACKBONE, ((0, 3, 5), (1, 7)))
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture
def stored() -> StoredStudents:
    students = build_students(SPEC, seed=3)
    students(IMAGES)  # running statistics that are not the initial ones
    for at, heads in enumerate(students.own.parameters()):
        heads.data += torch.arange(heads.numel()).reshape(heads.shape) + at
    calibrated = {1: FeatureDifference((1.0, 1.25)), 2: FeatureDifference((1.0, float("inf")))}
    weights = tuple(tuple(j + n / 7 for n in range(16)) for j in range(3))
    gate = {1: Gate((0.5, 1 / 3), weights), 2: Gate((float("inf"), -2.0), weights[::-1])}
    return StoredStudents(
        students=students.eval(),
        classes=CLASSES,
        normalizer=Normalizer((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)),
        means={1: torch.rand(3), 2: torch.rand(2)},
        policies={CALIBRATED: calibrated, "last": {1: LastExit(3), 2: LastExit(3)}, "gate": gate},
        ladder=[{1: LastExit(3), 2: LastExit(3)}, calibrated, {1: Random((1, 1, 1), 7), 2: Random((1, 0, 0))}],
        run="monday",
    )


@torch.no_grad()
@pytest.mark.parametrize("below", [".", FILE, "final"])
def test_students_survive_saving(stored: StoredStudents, tmp_path: Path, below: str) -> None:
    folder = tmp_path / "final" if below == "final" else tmp_path
    save_students(folder, stored)
    again = load_students(tmp_path if below == "final" else tmp_path / below)
    for before, after in zip(stored.students(IMAGES), again.students(IMAGES), strict=True):
        assert torch.equal(before, after)
    assert not again.students.training
    assert again.students.spec == SPEC
    assert (again.classes, again.run) == (CLASSES, "monday")
    assert (again.normalizer.mean, again.normalizer.std) == (stored.normalizer.mean, stored.normalizer.std)
    assert {k: mean.tolist() for k, mean in again.means.items()} == {k: m.tolist() for k, m in stored.means.items()}
    assert again.policies == stored.policies
    assert again.ladder == stored.ladder


@torch.no_grad()
@pytest.mark.parametrize("number", [1, 2])
def test_device_file_holds_one_student(stored: StoredStudents, tmp_path: Path, number: int) -> None:
    save_students(tmp_path, stored)
    device = load_student(student_file(tmp_path, number))
    whole = stored.students.student(number)
    assert all(torch.equal(f, g) for f, g in zip(device.network(IMAGES), whole(IMAGES), strict=True))
    assert torch.equal(device.block, stored.students.classifier.blocks[str(number)])
    assert torch.equal(device.bias, stored.students.classifier.bias)
    assert torch.equal(device.own[0], stored.students.own.weights[str(number)])
    assert torch.equal(device.own[1], stored.students.own.biases[str(number)])
    assert (device.number, device.classes, device.run) == (number, CLASSES, "monday")
    assert device.policies == {name: policies[number] for name, policies in stored.policies.items()}
    assert (device.normalizer.mean, device.normalizer.std) == (stored.normalizer.mean, stored.normalizer.std)
    assert not device.network.training


@torch.no_grad()
def test_device_logits_add_up_to_the_joint_logits(stored: StoredStudents, tmp_path: Path) -> None:
    save_students(tmp_path, stored)
    devices = [load_student(student_file(tmp_path, number)) for number in SPEC.numbers]
    for j, z in enumerate(stored.students(IMAGES)):
        alone = [device.classify(j, device.network(IMAGES)[j]) for device in devices]
        torch.testing.assert_close(alone[0] + alone[1] - devices[0].bias[j], z)


@torch.no_grad()
def test_own_heads_of_a_device(stored: StoredStudents, tmp_path: Path) -> None:
    save_students(tmp_path, stored)
    for number in SPEC.numbers:
        device = load_student(student_file(tmp_path, number))
        features = device.network(IMAGES)
        for j, logits in enumerate(stored.students.own(number, features)):
            torch.testing.assert_close(device.classify(j, features[j], own=True), logits)


@torch.no_grad()
def test_part_saves_its_own_student(stored: StoredStudents, tmp_path: Path) -> None:
    part = Students(SPEC, {2: stored.students.student(2)}, stored.students.classifier, stored.students.own.only(2))
    save_student(tmp_path / "new" / "own", part, 2, stored.normalizer, {}, CLASSES, "monday")
    device = load_student(tmp_path / "new" / "own")
    assert (device.number, device.policies) == (2, {})
    assert torch.equal(device.network(IMAGES)[-1], stored.students.student(2)(IMAGES)[-1])


def test_exit_macs_match_the_cost_table(stored: StoredStudents) -> None:
    student = stored.students.student(1)
    costs = cost_table(student)
    assert exit_macs(student) == [costs.cut_macs(position) for position in (1, 3, 7)]


@pytest.mark.parametrize("name", [FILE, "student-1.safetensors"])
@pytest.mark.parametrize("length", [0, 5, 3000])
def test_truncated_file_is_refused(stored: StoredStudents, tmp_path: Path, name: str, length: int) -> None:
    save_students(tmp_path, stored)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=name):
        (load_students if name == FILE else load_student)(path)


def rewrite(path: Path, change: Callable[[dict, dict], None]) -> None:
    tensors, values = read_tensors(path)
    change(tensors, values)
    write_tensors(path, tensors, values)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, values: values.clear(),
        lambda tensors, values: values.pop("ladder"),
        lambda tensors, values: values.update(spec="{}"),
        lambda tensors, values: values.update(spec="not JSON"),
        lambda tensors, values: values["policies"][CALIBRATED].update({"1": "{}"}),
        lambda tensors, values: values.update(policies=[]),
        lambda tensors, values: tensors.pop("model.classifier.bias"),
        lambda tensors, values: tensors.update({"model.classifier.bias": torch.zeros(2, 4)}),
        lambda tensors, values: tensors.pop("mean.2"),
        lambda tensors, values: tensors.update({"mean.2": torch.zeros(3)}),
    ],
)
def test_damaged_aggregator_file_is_refused(
    stored: StoredStudents, tmp_path: Path, change: Callable[[dict, dict], None]
) -> None:
    save_students(tmp_path, stored)
    rewrite(tmp_path / FILE, change)
    with pytest.raises(UserError, match=r"students\.safetensors does not hold students"):
        load_students(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, values: values.pop("number"),
        lambda tensors, values: values.update(network="{}"),
        lambda tensors, values: values.update(policies=[]),
        lambda tensors, values: tensors.pop("block"),
        lambda tensors, values: tensors.update(block=torch.zeros(3, 4, 2)),
        lambda tensors, values: tensors.update(bias=torch.zeros(2, 4)),
        lambda tensors, values: tensors.pop("own.bias"),
        lambda tensors, values: tensors.update({"own.weight": torch.zeros(3, 4, 2)}),
        lambda tensors, values: tensors.pop("model.units.0.weight"),
    ],
)
def test_damaged_device_file_is_refused(
    stored: StoredStudents, tmp_path: Path, change: Callable[[dict, dict], None]
) -> None:
    save_students(tmp_path, stored)
    rewrite(student_file(tmp_path, 1), change)
    with pytest.raises(UserError, match=r"student-1\.safetensors does not hold a student"):
        load_student(student_file(tmp_path, 1))


def test_folder_without_students_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no students in"):
        load_students(tmp_path)
    with pytest.raises(UserError, match="student-1"):
        load_student(student_file(tmp_path, 1))


def test_aggregator_file_is_refused_as_device_file(stored: StoredStudents, tmp_path: Path) -> None:
    save_students(tmp_path, stored)
    with pytest.raises(UserError, match="does not hold a student"):
        load_student(tmp_path / FILE)

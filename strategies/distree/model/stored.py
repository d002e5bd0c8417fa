"""Finished students on disk: one file for the aggregator, one for each device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.data.images import Normalizer
from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table
from common.storage.files import read_tensors, write_tensors
from strategies.distree.exits.classifier import logits_at
from strategies.distree.exits.policies import ExitPolicy, Policies, policy_from_json
from strategies.distree.model.students import Student, Students, StudentsSpec, build_students

FILE = "students.safetensors"


@dataclass(frozen=True)
class StoredStudents:
    """What the aggregator needs: all column blocks, stand-ins for missing devices, and the students' exit policies."""

    students: Students
    classes: tuple[str, ...]
    normalizer: Normalizer
    means: Mapping[int, Tensor]  # student -> its mean feature (|P_k|,) at the last exit, over validation images
    policies: Mapping[str, Policies] = field(default_factory=dict)  # operating points by name
    # From "all samples at the last exit" to the cheapest: the rungs of the online controller
    ladder: Sequence[Policies] = ()
    # Student -> its mean MACs at every rung, on validation images
    ladder_costs: Mapping[int, Sequence[float]] = field(default_factory=dict)
    run: str = ""  # id of the training, see `training/finish.py: training_id`; the same in the devices' files


@dataclass(frozen=True)
class StoredStudent:
    """What a device needs to serve its student."""

    network: Student
    number: int
    block: Tensor  # its columns of the classifier (J, classes, |P_k|)
    bias: Tensor  # (J, classes)
    own: tuple[Tensor, Tensor]  # weights (J, classes, |P_k|) and biases (J, classes) of its own heads
    normalizer: Normalizer
    policies: Mapping[str, ExitPolicy]  # by name
    classes: tuple[str, ...]
    run: str  # as in `StoredStudents`
    backbone: str = ""  # the network's name

    def classify(self, exit_index: int, features: Tensor, own: bool = False) -> Tensor:
        """Return the logits (b, classes) of this student alone, of its own heads or of its columns.

        Those of the columns are the final ones if it is the only student.
        """
        return logits_at(self.own if own else (self.block, self.bias), exit_index, features)

    def to(self, device: torch.device) -> "StoredStudent":
        """Return the student on another device; its network moves there."""
        return replace(
            self, network=self.network.to(device), block=self.block.to(device), bias=self.bias.to(device),
            own=(self.own[0].to(device), self.own[1].to(device)), normalizer=self.normalizer.to(device),
        )  # fmt: skip


def student_file(folder: Path, number: int) -> Path:
    """Return the path of a device's file in a folder."""
    return folder / f"student-{number}.safetensors"


def exit_macs(network: Student) -> list[float]:
    """Return the MACs of a sample that stops at each exit of a student."""
    costs = cost_table(network)
    return [float(costs.macs(index)) for index in range(len(costs.exits))]


def save_students(folder: Path, stored: StoredStudents) -> None:
    """Write the aggregator's file and one per student."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"mean.{k}": mean for k, mean in stored.means.items()}
    tensors |= {f"model.{key}": value for key, value in stored.students.state_dict().items()}
    values = {
        "spec": stored.students.spec.to_json(),
        "policies": {name: _texts(policies) for name, policies in stored.policies.items()},
        "ladder": [_texts(policies) for policies in stored.ladder],
        "ladder_costs": {k: list(costs) for k, costs in stored.ladder_costs.items()},
        **_common(stored),
    }
    write_tensors(folder / FILE, tensors, values)
    for number in stored.students.spec.numbers:
        own = {name: policies[number] for name, policies in stored.policies.items()}
        save_student(
            student_file(folder, number), stored.students, number, stored.normalizer, own, stored.classes, stored.run
        )


def save_student(
    path: Path,
    students: Students,
    number: int,
    normalizer: Normalizer,
    policies: Mapping[str, ExitPolicy],
    classes: Sequence[str],
    run: str,
) -> None:
    """Write a device's file; `students` may hold only this student."""
    path.parent.mkdir(parents=True, exist_ok=True)
    student = students.student(number)
    tensors = {f"model.{key}": value for key, value in student.state_dict().items()}
    tensors |= {"block": students.classifier.blocks[str(number)], "bias": students.classifier.bias}
    tensors |= {"own.weight": students.own.weights[str(number)], "own.bias": students.own.biases[str(number)]}
    values = {
        "number": number,
        "network": students.spec.backbones[number - 1].to_json(),
        "policies": {name: policy.to_json() for name, policy in policies.items()},
        "classes": list(classes), "mean": normalizer.mean, "std": normalizer.std, "run": run,
    }  # fmt: skip
    write_tensors(path, tensors, values)


def find_students(path: Path) -> Path:
    """Return the aggregator's file at `path`: the file itself, its folder or its run's folder; raises `UserError`."""
    found = next((p for p in (path, path / FILE, path / "final" / FILE) if p.is_file()), None)
    if found is None:
        raise UserError(f"no students in {path}: give the folder of a distree run or of `python -m server students`")
    return found


def load_students(path: Path) -> StoredStudents:
    """Read the file that `find_students` finds; raises `UserError` when it is missing or damaged."""
    found = find_students(path)
    tensors, values = read_tensors(found)
    try:
        students = build_students(StudentsSpec.from_json(values["spec"]), seed=0)
        students.load_state_dict(_below(tensors, "model."))
        means = {int(k): mean for k, mean in _below(tensors, "mean.").items()}
        for number, part in zip(students.spec.numbers, students.spec.partition, strict=True):
            _check_shape(means[number], len(part))
        return StoredStudents(
            students.eval(), tuple(values["classes"]), _normalizer(values), means,
            {name: _policies(texts) for name, texts in values["policies"].items()},
            [_policies(texts) for texts in values["ladder"]],
            {int(k): tuple(map(float, costs)) for k, costs in values["ladder_costs"].items()}, str(values["run"]),
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{found} does not hold students: {error}") from error


def load_student(path: Path) -> StoredStudent:
    """Read a device's file; raises `UserError` when it is missing or damaged."""
    tensors, values = read_tensors(path)
    try:
        spec = NetworkSpec.from_json(values["network"])
        network = Student.of(build(spec, seed=0))
        network.load_state_dict(_below(tensors, "model."))
        policies = {name: policy_from_json(text) for name, text in values["policies"].items()}
        exits, classes = len(network.exit_positions), len(values["classes"])
        for weight, bias in (("block", "bias"), ("own.weight", "own.bias")):
            _check_shape(tensors[weight], exits, classes, network.num_classes)
            _check_shape(tensors[bias], exits, classes)
        return StoredStudent(
            network.eval(), int(values["number"]), tensors["block"], tensors["bias"],
            (tensors["own.weight"], tensors["own.bias"]), _normalizer(values), policies, tuple(values["classes"]),
            str(values["run"]), spec.name,
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not hold a student: {error}") from error


def _common(stored: StoredStudents) -> dict[str, Any]:
    return {
        "classes": list(stored.classes), "mean": stored.normalizer.mean, "std": stored.normalizer.std, "run": stored.run
    }  # fmt: skip


def _normalizer(values: Mapping[str, Any]) -> Normalizer:
    return Normalizer(tuple(values["mean"]), tuple(values["std"]))


def _texts(policies: Policies) -> dict[int, str]:
    return {number: policy.to_json() for number, policy in policies.items()}


def _policies(texts: Mapping[str, str]) -> dict[int, ExitPolicy]:
    return {int(number): policy_from_json(text) for number, text in texts.items()}


def _check_shape(tensor: Tensor, *shape: int) -> None:
    if tensor.shape != shape:
        raise ValueError(f"a tensor has shape {tuple(tensor.shape)} instead of {shape}")


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

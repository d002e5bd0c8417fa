"""Which of the K students a device trains, from its capacity and the students' costs."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from common.capacity import Capacity, Choice, lacking, override
from common.config import RunConfig
from common.errors import UserError
from common.networks import CostTable, build, cost_table
from strategies.distree.model.students import Students, StudentsSpec, build_students
from strategies.distree.settings import DistrEESettings, read_device
from strategies.parts import Parts

BYTES = 4  # of a float32
LEAN = "lean"  # value of a choice: the device cannot hold the teacher, so it learns from public images
LEARN_FROM_PUBLIC = "set distree.without-teacher to public, so that it learns from public images"


@dataclass(frozen=True)
class StudentCosts:
    """Costs of each student, of the classifier's columns, and of the teacher."""

    students: tuple[CostTable, ...]  # from student 1 on, cheap to dear, apart from the number of filters
    columns: tuple[int, ...]  # parameters of each student's columns of the classifier, at all exits
    bias: int  # parameters of the classifier's bias, which every device holds
    own: tuple[int, ...]  # parameters of each student's own heads
    alike: tuple[tuple[int, ...], ...]  # groups of students that differ only in their number of filters, cheap to dear
    teacher: CostTable
    devices: tuple[str, ...] = ()  # each student's device, as declared; empty if widths were not matched to devices

    def table(self, number: int) -> CostTable:
        """Return a student's own table."""
        return self.students[number - 1]

    def parameters(self, number: int) -> int:
        """Return the parameters that a device holds: its student and the whole classifier."""
        network = self.table(number).cut_parameters(len(self.table(number).units))
        return network + sum(self.columns) + self.bias + self.own[number - 1]

    def training_memory(self, number: int, batch_size: int) -> int:
        """Return the bytes for training a student, its heads, columns and the bias; other columns are only held."""
        table = self.table(number)
        trained = self.columns[number - 1] + self.bias + self.own[number - 1]
        classifier = BYTES * (3 * trained + sum(self.columns) - self.columns[number - 1])
        return table.cut_training_memory(len(table.units), batch_size) + classifier

    def teacher_memory(self, batch_size: int) -> int:
        """Return the bytes for a forward pass of the teacher."""
        return self.teacher.forward_memory(batch_size)

    def to_json(self) -> str:
        """Return the costs as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "StudentCosts":
        """Return the costs that `to_json` wrote."""
        values = json.loads(text)
        return cls(
            tuple(_table(student) for student in values["students"]), tuple(values["columns"]), values["bias"],
            tuple(values["own"]), tuple(tuple(group) for group in values["alike"]), _table(values["teacher"]),
            tuple(values["devices"]),
        )  # fmt: skip


class StudentParts(Parts[StudentsSpec, Students, StudentCosts]):
    """A device's own student with its heads, and the classifier's columns of all students."""

    word = "student"

    def spec(self, text: str) -> StudentsSpec:
        """Return the students' spec."""
        return StudentsSpec.from_json(text)

    def whole(self, spec: StudentsSpec, seed: int) -> Students:
        """Return all students."""
        return build_students(spec, seed)

    def costs(self, whole: Students) -> StudentCosts:
        """Return what the students and their teacher cost."""
        spec, classifier = whole.spec, whole.classifier
        plain = [replace(backbone, num_classes=0) for backbone in spec.backbones]
        devices = tuple(map(read_device, spec.devices)) or (None,) * len(plain)
        groups = groupby(spec.numbers, key=lambda number: (plain[number - 1], devices[number - 1]))
        return StudentCosts(
            tuple(cost_table(student) for _, student in whole.numbered()),
            tuple(classifier.blocks[str(number)].numel() for number in spec.numbers), classifier.bias.numel(),
            tuple(sum(value.numel() for value in whole.own.only(number).parameters()) for number in spec.numbers),
            tuple(tuple(group) for _, group in groups), cost_table(build(spec.teacher, seed=0)), spec.devices,
        )  # fmt: skip

    def read_costs(self, text: str) -> StudentCosts:
        """Return the costs that `to_json` wrote."""
        return StudentCosts.from_json(text)

    def numbers(self, costs: StudentCosts, config: RunConfig) -> Sequence[int]:
        """Return the students' numbers, cheap to dear."""
        return range(1, len(costs.students) + 1)

    def take(self, network: Students, number: int) -> Students:
        """Return a copy of one student and of the classifier; the other students' columns are frozen."""
        if number not in network.spec.numbers:
            raise UserError(f"student {number}: this run has the students 1..{len(network.spec.numbers)}")
        classifier = copy.deepcopy(network.classifier)
        for other, block in classifier.blocks.items():
            block.requires_grad_(other == str(number))
        student = copy.deepcopy(network.student(number))
        part = Students(network.spec, {number: student}, classifier, network.own.only(number))
        return part.train(network.training)

    def stored(self, number: int) -> tuple[int, int]:
        """Return the student's number and 0."""
        return number, 0

    def macs(self, costs: StudentCosts, number: int) -> int:
        """Return the MACs of one sample's forward pass through a student and all its exits."""
        return costs.table(number).cut_macs(len(costs.table(number).units))

    def parameters(self, costs: StudentCosts, number: int) -> int:
        """Return the number of parameters that a device holds."""
        return costs.parameters(number)

    def exit_macs(self, costs: StudentCosts, number: int) -> list[float]:
        """Return the MACs of a sample that stops at each exit of a student."""
        table = costs.table(number)
        return [float(table.macs(index)) for index in range(len(table.exits))]

    def choose(
        self, capacity: Capacity, costs: StudentCosts, config: RunConfig, samples: int, client: int = 0
    ) -> Choice:
        """Return the dearest student that the capacity carries; of students that are alike, clients take turns by id.

        Where widths were matched to devices, a student needs at least the capacity of its own device; the first student
        needs none. A device that could train a wider student might be too slow to answer with it. A device must also
        hold the teacher once, to compute the teacher's answers to its own images. A device that cannot is refused, or
        learns from public images that come with the teacher's answers.
        """
        settings = config.of(DistrEESettings)
        choice = self._student(capacity, costs, config, samples, client)
        problem = teacher_too_large(capacity, costs.teacher_memory(config.train.batch_size))
        if not choice.part or not problem:
            return choice
        if settings.without_teacher == "refuse":
            return Choice(0, f"{problem}; {LEARN_FROM_PUBLIC}")
        return Choice(choice.part, f"{choice.reason}; {problem}, so it learns from public images", values={LEAN: True})

    def _student(self, capacity: Capacity, costs: StudentCosts, config: RunConfig, samples: int, client: int) -> Choice:
        offered = self.numbers(costs, config)
        if choice := override(capacity, self.word, offered):
            return choice
        reason = "no limit declared"
        for group in reversed(costs.alike):
            least = costs.devices[group[0] - 1] if costs.devices and group != costs.alike[0] else ""
            if least and not capacity.covers(read_device(least)):
                reason = f"student {group[0]} is for devices of at least {least}"
                continue
            problems = {number: untrainable(capacity, costs, config, samples, number) for number in group}
            if not any(problems.values()):
                return Choice(group[client % len(group)], reason)
            reason = next(f"student {number} {problem}" for number, problem in problems.items() if problem)
        return Choice(0, f"nothing fits: {reason}")


def untrainable(capacity: Capacity, costs: StudentCosts, config: RunConfig, samples: int, number: int) -> str:
    """Return why a device cannot train a student on `samples` samples, as a phrase after its subject, or ""."""
    needs, table = costs.training_memory(number, config.train.batch_size), costs.table(number)
    bits = 2 * 8 * BYTES * costs.parameters(number)  # down and up
    return lacking(capacity, needs, table.cut_macs(len(table.units)) * samples, bits)


def teacher_too_large(capacity: Capacity, needs: int) -> str:
    """Return why a device cannot run a teacher that needs `needs` bytes, or ""."""
    if capacity.memory is None or needs <= capacity.memory:
        return ""
    return f"the teacher needs {needs / 1e6:.1f} MB of {capacity.memory / 1e6:.1f} MB"


def _table(values: Mapping[str, Any]) -> CostTable:
    return CostTable.from_json(json.dumps(values))


STUDENTS = StudentParts()

"""K students of one teacher: each student sees the whole image and imitates its own part of the teacher's last filters.

Source: DistrEE (Peng et al., arXiv 2502.15735); the partitioned teacher is NoNN's (Bhardwaj et al., ACM TECS 18, 2019).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.seeding import derive_seed
from strategies.distree.exits.classifier import ColumnBlocks, OwnHeads

# Bias that the exit heads start with. Around 0, torch's default, many features of a shallow exit are 0 for every image,
# get no gradient and stay 0: pooled maps differ too little between images to lift them.
FIRST_BIAS = 0.5


class Student(EarlyExitNetwork):
    """An early-exit network whose exits return features F_j (B, |P_k|), never negative, instead of logits.

    `student(x)` returns them for all exits, `student.infer(x, leaves)` those of the exit where each sample stops.
    """

    @classmethod
    def of(cls, network: EarlyExitNetwork) -> "Student":
        """Return the student that shares a network's units and exits."""
        units = {int(index): unit for index, unit in network.units.items()}
        return cls(
            units, {position: network.head(position) for position in network.exit_positions}, network.architecture
        )

    def _output(self, head_output: Tensor, previous: Tensor | None) -> Tensor:
        return torch.relu(head_output)


@dataclass(frozen=True)
class StudentsSpec:
    """Everything that decides the shapes of the students and of their teacher. Travels as JSON."""

    teacher: NetworkSpec
    backbones: tuple[NetworkSpec, ...]  # one per student; `num_classes` is the length |P_k| of its features
    partition: tuple[tuple[int, ...], ...]  # one per student: its filters of the teacher's last feature, disjoint
    devices: tuple[str, ...] = ()  # one per student: the declared device that its width matches; empty if none declared

    def __post_init__(self) -> None:
        filters = [f for part in self.partition for f in part]
        sizes = tuple(map(len, self.partition))
        if len(set(filters)) != len(filters) or tuple(b.num_classes for b in self.backbones) != sizes or 0 in sizes:
            raise UserError("the students' filters overlap or do not fit their networks: partition the teacher again")

    @property
    def num_classes(self) -> int:
        """Number of the teacher's classes."""
        return self.teacher.num_classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image (C, H, W)."""
        return self.teacher.input_shape

    @property
    def numbers(self) -> range:
        """The students' numbers, from 1."""
        return range(1, len(self.backbones) + 1)

    def without_weights(self) -> "StudentsSpec":
        """Return the spec unchanged: students start from the run's seed."""
        return self

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        networks = {"teacher": self.teacher.plain(), "backbones": [backbone.plain() for backbone in self.backbones]}
        return json.dumps(asdict(self) | networks)

    @classmethod
    def from_json(cls, text: str) -> "StudentsSpec":
        """Return the spec that `to_json` wrote; raises `UserError` when a field is unknown or missing."""
        values = json.loads(text)
        try:
            return cls(
                NetworkSpec.from_json(json.dumps(values["teacher"])),
                tuple(NetworkSpec.from_json(json.dumps(b)) for b in values["backbones"]),
                tuple(tuple(int(f) for f in part) for part in values["partition"]),
                tuple(map(str, values.get("devices", ()))),
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"incomplete description of students ({error}): train the students again") from error


def students_spec(
    teacher: NetworkSpec,
    backbone: NetworkSpec,
    partition: Sequence[Sequence[int]],
    widths: Sequence[int] = (),
    devices: Sequence[str] = (),
    pooling: str = "mean",
) -> StudentsSpec:
    """Return the spec of one student per part, all of one backbone.

    Args:
        teacher: the network whose filters are partitioned.
        backbone: the network of every student.
        partition: the filters of each student.
        widths: one per student; empty: the backbone's.
        devices: one per student, as declared: the devices that the widths match; empty: none declared.
        pooling: `distree.pooling`.
    """
    parts = tuple(tuple(part) for part in partition)
    chosen = widths or (backbone.width,) * len(parts)
    if len(chosen) != len(parts):
        raise UserError(f"{len(chosen)} widths for {len(parts)} students: give one width per student, or none")
    plain = replace(teacher, pretrained="")
    # no ensemble: it adds logits, and a student has none
    backbones = (
        replace(backbone, num_classes=len(part), width=width, ensemble=0.0, pretrained="", pooling=pooling)
        for part, width in zip(parts, chosen, strict=True)
    )
    return StudentsSpec(plain, tuple(backbones), parts, tuple(devices))


class Students(nn.Module):
    """Some of the students with their own heads, and the classifier's column blocks of all students.

    A device's part holds its own student; the whole holds all. Parameter names are the same in both, so averaging by
    name averages each student over the devices that hold it.
    """

    def __init__(
        self, spec: StudentsSpec, networks: Mapping[int, Student], classifier: ColumnBlocks, own: OwnHeads
    ) -> None:
        super().__init__()
        self.spec = spec
        self.networks = nn.ModuleDict({str(number): networks[number] for number in sorted(networks)})
        self.classifier = classifier
        self.own = own

    @property
    def num_exits(self) -> int:
        """J, the same for every student."""
        return self.classifier.num_exits

    def student(self, number: int) -> Student:
        """Return the student of a number, from 1."""
        return cast(Student, self.networks[str(number)])

    def numbered(self) -> Iterable[tuple[int, Student]]:
        """Return the students that this part holds, with their numbers."""
        return ((int(number), cast(Student, student)) for number, student in self.networks.items())

    def features(self, x: Tensor) -> dict[int, list[Tensor]]:
        """Return F_{k,j}: for each student held here the features (B, |P_k|) of all exits, of x (B, C, H, W)."""
        return {number: student(x) for number, student in self.numbered()}

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits (B, classes) of each exit, with all students stopping at the same one."""
        features = self.features(x)
        return [self.classifier({k: f[j] for k, f in features.items()}, j) for j in range(self.num_exits)]


def build_students(spec: StudentsSpec, seed: int) -> Students:
    """Return the students and their classifier; the same seed gives the same bits.

    Raises `UserError` when a network cannot be built, or the students have different numbers of exits.
    """
    networks = {
        number: Student.of(build(backbone, derive_seed(seed, "student", number)))
        for number, backbone in zip(spec.numbers, spec.backbones, strict=True)
    }
    for network in networks.values():
        for position in network.exit_positions:
            nn.init.constant_(network.head(position).linear.bias, FIRST_BIAS)
    exits = {len(network.exit_positions) for network in networks.values()}
    if len(exits) != 1:
        raise UserError("students need the same number of exits: give all of them one network.name and network.exits")
    sizes = {number: len(part) for number, part in zip(spec.numbers, spec.partition, strict=True)}
    num_exits = exits.pop()
    classifier = ColumnBlocks(sizes, num_exits, spec.num_classes, derive_seed(seed, "blocks"))
    return Students(spec, networks, classifier, OwnHeads(sizes, num_exits, spec.num_classes))


@torch.no_grad()
def teacher_targets(teacher: EarlyExitNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the students' targets: the teacher's last feature (B, D), clipped at 0, and its logits (B, classes)."""
    outputs = teacher.forward_exits(x)
    return outputs.features[-1].clamp_min(0), outputs.logits[-1]


def blocks_of(features: Tensor, partition: Sequence[Sequence[int]]) -> dict[int, Tensor]:
    """Return each student's columns (B, |P_k|) of the teacher's features (B, D)."""
    return {k: features[:, list(part)] for k, part in enumerate(partition, start=1)}

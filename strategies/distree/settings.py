"""Hyper-parameters of DistrEE (arXiv 2502.15735) and of NoNN's partition (arXiv 1907.11804)."""

from typing import Literal

from pydantic import Field

from common.capacity import DECLARED, Capacity, parse_capacity, read_node
from common.errors import UserError
from common.sections.data import DataConfig
from common.settings import Floats, Ints, Settings, read_section


def read_device(text: str) -> Capacity:
    """Return the capacity that an entry of `distree.devices` declares; raises `UserError`."""
    if text == "auto":
        raise UserError("'auto' would measure the server: write what the device has")
    return parse_capacity(read_node(text, tuple(DECLARED)))


def as_typed(values: tuple[float, ...]) -> str:
    """Return numbers as a user types them: `1,2.5`."""
    return ",".join(f"{value:g}" for value in values)


class DistrEESettings(Settings):
    """Published values are NoNN's; values that the public text leaves open are marked "reconstructed"."""

    SECTION = "distree"

    teacher: str = ""
    """a finished run's folder, or a model file; its filters are partitioned"""
    students: int = Field(2, ge=1)
    """K, the number of students"""
    widths: Ints = ()
    """one network.width per student, for devices of unequal power; empty: all the same"""
    devices: str = ""
    """the K devices' capacities, ";" between them: each student gets the width that suits its device"""
    top_filters: int = Field(50, ge=2)
    """strongest filters of each image, linked in pairs"""
    kept_edges: float = Field(0.01, ge=1e-6, le=1)
    """share of the links that the graph keeps, the strongest"""
    resolution: float = Field(1 / 0.7, ge=1e-6)
    """of Louvain's modularity; python-louvain's 0.7, which is the inverse"""
    alpha: float = Field(0.9, ge=0, le=1)
    """weight of the teacher's logits; the labels get the rest"""
    temperature: float = Field(4.0, ge=1e-6)
    """of the distillation"""
    beta: float = Field(100.0, ge=0)
    """weight of the activation transfer as a squared distance; the released code's mean takes 10000"""
    exit_weights: Floats = ()
    """w, one per exit; empty: all the same (reconstructed)"""
    without_teacher: Literal["refuse", "public"] = "refuse"
    """a device that cannot hold the teacher: refuse it, or public images teach it"""
    public: str = ""
    """the public images: NAME or NAME:FOLDER of a data set"""
    public_samples: int = Field(500, ge=2)
    """public images that are used"""
    pooling: Literal["squares", "mean"] = "squares"
    """of the maps that exits see: means of squares, a quarter of the image's side each, or one mean (reconstructed)"""
    exit_rule: Literal["own-head", "entropy", "difference", "gate"] = "own-head"
    """by which a sample leaves a student: entropy of its own head or of its columns, the paper's rule, or a gate"""
    max_accuracy_loss: float = Field(0.01, ge=0)
    """accuracy that calibrated thresholds may lose on validation images, one standard error included"""

    def other_mistakes(self) -> list[str]:
        """Check lists against the number of students, and what the teacher's absence needs."""
        found = []
        if self.widths and len(self.widths) != self.students:
            found.append(
                f"distree.widths gives {len(self.widths)} widths, distree.students is {self.students}: "
                "give one width per student"
            )
        if any(width < 1 for width in self.widths):
            found.append(f"distree.widths is {as_typed(self.widths)}, every width must be at least 1")
        if self.devices:
            found += self._device_mistakes()
        if any(weight < 0 for weight in self.exit_weights):
            found.append(f"distree.exit-weights is {as_typed(self.exit_weights)}, every weight must be at least 0")
        if self.exit_weights and not sum(self.exit_weights):
            found.append(f"distree.exit-weights is {as_typed(self.exit_weights)}, the weights must not all be 0")
        if self.without_teacher == "public" and not self.public:
            found.append("distree.without-teacher is 'public': set distree.public, such as cifar100:/data/cifar100")
        if self.public:
            name, _, root = self.public.partition(":")
            problems = read_section(DataConfig, name=name, root=root).problems
            found += [f"distree.public is {self.public!r}: {problem}" for problem in problems]
        return found

    def run_mistakes(self, units: int) -> list[str]:
        """Check that a teacher is given: `python -m server students` takes it as an option."""
        return [] if self.teacher else ["distree.teacher is empty: set it to a finished run's folder or a model file"]

    @property
    def declared(self) -> tuple[str, ...]:
        """Each device's capacity as the user wrote it; empty if none is declared."""
        return tuple(text.strip() for text in self.devices.split(";")) if self.devices else ()

    def _device_mistakes(self) -> list[str]:
        found = []
        if self.widths:
            found.append(
                f"distree.widths is {as_typed(self.widths)}, but distree.devices decides the widths: "
                "leave one of the two empty"
            )
        if len(self.declared) != self.students:
            found.append(
                f"distree.devices names {len(self.declared)} devices, distree.students is {self.students}: "
                "name one device per student, with ';' between them"
            )
        for text in self.declared:
            try:
                read_device(text)
            except UserError as error:
                found.append(f"distree.devices: {error}")
        return found

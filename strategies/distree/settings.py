"""Hyper-parameters of DistrEE (arXiv 2502.15735) and of NoNN's partition (arXiv 1907.11804)."""

from dataclasses import dataclass

from common.capacity import DECLARED, Capacity, parse_capacity, read_node
from common.errors import UserError
from common.settings import Settings, at_least, at_most, one_of


def read_device(text: str) -> Capacity:
    """Return the capacity that an entry of `distree.devices` declares; raises `UserError`."""
    if text == "auto":
        raise UserError("'auto' would measure the server: write what the device has")
    return parse_capacity(read_node(text, tuple(DECLARED)))


def as_typed(values: tuple[float, ...]) -> str:
    """Return numbers as a user types them: `1,2.5`."""
    return ",".join(f"{value:g}" for value in values)


@dataclass(frozen=True)
class DistrEESettings(Settings):
    """Published values are NoNN's; values that the public text leaves open are marked "reconstructed"."""

    SECTION = "distree"

    teacher: str = ""  # a finished run's folder, or a model file; its filters are partitioned
    students: int = 2  # K
    widths: tuple[int, ...] = ()  # one network.width per student, for devices of unequal power; empty: all the same
    devices: str = ""  # the K devices' capacities, ";" between them: each student gets the width that suits its device
    top_filters: int = 50  # strongest filters of each image, linked in pairs
    kept_edges: float = 0.01  # share of the links that the graph keeps, the strongest
    resolution: float = 1 / 0.7  # of Louvain's modularity; python-louvain's 0.7, which is the inverse
    alpha: float = 0.9  # weight of the teacher's logits; the labels get the rest
    temperature: float = 4.0  # of the distillation
    beta: float = 100.0  # weight of the activation transfer as a squared distance; the released code's mean takes 10000
    exit_weights: tuple[float, ...] = ()  # w, one per exit; empty: all the same (reconstructed)
    without_teacher: str = "refuse"  # a device that cannot hold the teacher: "refuse" it, or "public" images teach it
    public: str = ""  # the public images: NAME or NAME:FOLDER of a data set
    public_samples: int = 500
    max_accuracy_loss: float = 0.01  # of the calibrated thresholds, on validation images

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(
            self, students=1, top_filters=2, kept_edges=1e-6, resolution=1e-6, alpha=0, temperature=1e-6, beta=0,
            public_samples=2, max_accuracy_loss=0,
        )  # fmt: skip
        found += at_most(self, kept_edges=1, alpha=1) + one_of(self, without_teacher=("refuse", "public"))
        if self.widths and len(self.widths) != self.students:
            found.append(
                f"distree.widths gives {len(self.widths)} widths, distree.students is {self.students}: "
                "give one width per student"
            )
        if any(width < 1 for width in self.widths):
            found.append(f"distree.widths is {as_typed(self.widths)}, every width must be at least 1")
        if self.devices:
            found += self._device_problems()
        if any(weight < 0 for weight in self.exit_weights):
            found.append(f"distree.exit-weights is {as_typed(self.exit_weights)}, every weight must be at least 0")
        if self.exit_weights and not sum(self.exit_weights):
            found.append(f"distree.exit-weights is {as_typed(self.exit_weights)}, the weights must not all be 0")
        if self.without_teacher == "public" and not self.public:
            found.append("distree.without-teacher is 'public': set distree.public, such as cifar100:/data/cifar100")
        return found

    @property
    def declared(self) -> tuple[str, ...]:
        """Each device's capacity as the user wrote it; empty if none is declared."""
        return tuple(text.strip() for text in self.devices.split(";")) if self.devices else ()

    def _device_problems(self) -> list[str]:
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

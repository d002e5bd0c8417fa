"""How wide the student of each declared device is, from what the backbone costs at several widths.

DistrEE (arXiv 2502.15735) names devices of unequal power without a rule for them; this one is our own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from common.capacity import Capacity
from common.errors import UserError
from common.networks import NetworkSpec, width_of
from common.storage.model_file import StoredModel
from strategies.distree.model.parts import STUDENTS, StudentCosts
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.settings import DistrEESettings, read_device

FACTORS = (1, 2, 3, 4)  # of the configured width
ONLY = 1  # number of the student whose costs are looked at

Lacks = Callable[[Capacity, StudentCosts, int], str]
"""(device, costs of students, a student's number) -> what the device lacks for it, as a phrase after its subject."""


@dataclass(frozen=True)
class Match:
    """A declared device and its student's width."""

    device: str
    """As declared."""
    width: int
    reason: str
    """Why it is not wider."""

    @property
    def order(self) -> tuple[float, ...]:
        """Students' order from the cheapest to the dearest; of equal width, devices with less come first."""
        return self.width, *read_device(self.device).limits


def match_devices(
    settings: DistrEESettings, backbone: NetworkSpec, teacher: StoredModel, lacks: Lacks
) -> tuple[Match, ...]:
    """Return each declared device's match, in the order of `settings.devices`; nothing where none are declared.

    The costs at a width are those of a student that imitates all filters of the teacher: whatever part of them it gets
    later, it costs no more.

    Raises:
        UserError: a device lacks something even for the narrowest student.
    """
    filters = range(teacher.network.architecture.widths[-1])

    @cache
    def costs(width: int) -> StudentCosts:
        return STUDENTS.costs(build_students(students_spec(teacher.spec, backbone, [filters], [width]), seed=0))

    matched = match_widths(
        [read_device(text) for text in settings.declared],
        lambda width: STUDENTS.macs(costs(width), ONLY),
        lambda device, width: lacks(device, costs(width), ONLY),
        [factor * width_of(backbone) for factor in FACTORS],
    )
    return tuple(Match(text, *found) for text, found in zip(settings.declared, matched, strict=True))


def match_widths(
    devices: Sequence[Capacity],
    macs_of: Callable[[int], float],
    lacks: Callable[[Capacity, int], str],
    widths: Sequence[int] = FACTORS,
) -> list[tuple[int, str]]:
    """Return each device's width, the widest student that fits and keeps nobody waiting, and why it is not wider.

    An answer needs every device, so the narrowest student on the slowest device sets the time that others may use.

    Args:
        devices: one per student; one that declares no compute is never too slow.
        macs_of: width -> MACs of a sample through the whole student.
        lacks: device, width -> what else it lacks, as a phrase after its subject, or nothing.
        widths: those to choose from; a wider student costs more of everything.

    Raises:
        UserError: a device lacks something even for the narrowest student.
    """
    rising = sorted(widths)
    speeds = [device.compute for device in devices if device.compute is not None]
    longest = 2 * macs_of(rising[0]) / min(speeds) if speeds else 0.0

    def problem(device: Capacity, width: int) -> str:
        if lack := lacks(device, width):
            return lack
        seconds = 2 * macs_of(width) / device.compute if device.compute is not None else 0.0
        late = f"would take {1000 * seconds:.2f} ms an image, more than the slowest device's {1000 * longest:.2f} ms"
        return late if seconds > longest else ""

    found = []
    for number, device in enumerate(devices, start=1):
        chosen, reason = 0, "the widest on offer"
        for width in rising:
            if why := problem(device, width):
                reason = f"since width {width} {why}"
                break
            chosen = width
        if not chosen:
            raise UserError(f"no student suits device {number} of distree.devices, {reason}")
        found.append((chosen, reason))
    return found


def told(matches: Sequence[Match]) -> list[str]:
    """Return a line per student that tells a user its width and why."""
    return [
        f"student {number}, for {match.device}: width {match.width}, {match.reason}"
        for number, match in enumerate(matches, start=1)
    ]

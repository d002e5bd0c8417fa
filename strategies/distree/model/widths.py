"""How wide each declared device's student is, from the backbone's costs at several widths.

DistrEE (arXiv 2502.15735) mentions devices of unequal power but gives no rule for them; this rule is our own.
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
ONLY = 1  # number of the only student that is built to look at costs

# (device, costs of students, a student's number) -> what the device lacks for it, as a phrase after its subject
Lacks = Callable[[Capacity, StudentCosts, int], str]


@dataclass(frozen=True)
class Match:
    """A declared device and its student's width."""

    device: str  # as declared
    width: int
    reason: str  # why the student is not wider

    @property
    def order(self) -> tuple[float, ...]:
        """Sort key of the students, cheapest first; of equal width, the student of the weaker device."""
        return self.width, *read_device(self.device).limits


def match_devices(
    settings: DistrEESettings, backbone: NetworkSpec, teacher: StoredModel, lacks: Lacks
) -> tuple[Match, ...]:
    """Return each declared device's match, in the order of `settings.devices`; empty if none is declared.

    The costs at a width are those of a student that imitates all filters of the teacher. With only a part of them, as
    later, a student costs no more.

    Raises:
        UserError: a device lacks something even for the narrowest student.
    """
    filters = range(teacher.network.architecture.widths[-1])

    @cache
    def costs(width: int) -> StudentCosts:
        spec = students_spec(teacher.spec, backbone, [filters], [width], pooling=settings.pooling)
        return STUDENTS.costs(build_students(spec, seed=0))

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
    """Return for each device the largest width that fits and lets no other device wait, and why it is not larger.

    An answer needs every device, so the narrowest student on the slowest device sets the time limit for all others.

    Args:
        devices: one per student; a device that declares no compute is never too slow.
        macs_of: width -> MACs of a sample through the whole student.
        lacks: (device, width) -> what else the device lacks, as a phrase after its subject, or "".
        widths: the widths to choose from; a wider student costs more of everything.

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
            raise UserError(f"no student suits device {number} of distree.devices, {reason}: lower network.width")
        found.append((chosen, reason))
    return found


def describe_matches(matches: Sequence[Match]) -> list[str]:
    """Return a line for the user per student, with its width and the reason."""
    return [
        f"student {number}, for {match.device}: width {match.width}, {match.reason}"
        for number, match in enumerate(matches, start=1)
    ]

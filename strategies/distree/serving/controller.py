"""Hold a latency at run time: devices whose load or link changes move on the ladder of calibrated policies.

DistrEE (Peng et al., arXiv 2502.15735) sets thresholds once, by hand. This controller answers the paper's open question
of devices that change while they serve.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import UserError

SLOWEST = 16  # factor on the patience, at most, before a device repeats a failed climb


@dataclass(frozen=True)
class LatencyTarget:
    """The latency to hold, and how fast devices react."""

    seconds: float
    quantile: float = 0.9  # share of the requests in the window that must be answered in time
    window: int = 40  # requests
    room: float = 0.9  # share of `seconds` that a device may use at the rung it moves to
    patience: int = 10  # requests at a rung before the device climbs to a dearer one

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        checks = (
            (self.seconds > 0, f"the latency target must be above 0 seconds, got {self.seconds}"),
            (0 < self.quantile < 1, f"the latency quantile must be between 0 and 1, got {self.quantile}"),
            (0 < self.room <= 1, f"the room must be above 0 and at most 1, got {self.room}"),
            (1 <= self.patience <= self.window, f"the patience must be 1 to {self.window}, got {self.patience}"),
        )
        return [sentence for fine, sentence in checks if not fine]


class Seconds(NamedTuple):
    """Time that one device took for one request."""

    total: float  # until its last features arrived
    compute: float  # of these, the device's computing, the part that depends on the rung


@dataclass
class _Device:
    costs: Sequence[float]
    patience: int  # requests before the device climbs to `failed` again
    rung: int = 0
    answered: int = 0  # requests at this rung
    climbed: bool = False  # the device came from a cheaper rung, less than a window ago
    failed: int = -1  # rung of the last failed climb; -1: none


class LatencyController:
    """Chooses each device's rung of the ladder from the time of past requests; rung 0 is the last exit for all samples.

    Down at once: when more requests of the window are late than the quantile allows, each device that is late more
    often than its share goes to the dearest rung that is expected to fit, at least one rung down; the others stay.
    Up slowly: one rung, after `patience` requests, if the dearer rung is expected to fit with room to spare. A failed
    climb doubles the patience before the next try of that rung, until the rung holds for a window.

    Expected time of a rung: the device's measured link time, and its computing in proportion to the rungs' costs.
    """

    def __init__(self, costs: Mapping[int, Sequence[float]], target: LatencyTarget) -> None:
        """Start all devices at rung 0; `costs`: device -> its mean cost at every rung, of any unit, never rising.

        Raises `UserError` when the target or the costs are invalid.
        """
        problems = target.problems()
        if not costs or any(not c or min(c) <= 0 or sorted(c, reverse=True) != list(c) for c in costs.values()):
            problems.append("a ladder's costs must be above 0 and must not rise; calibrate the students again")
        if problems:
            raise UserError("; ".join(problems))
        self.target = target
        self._devices = {number: _Device(values, target.patience) for number, values in costs.items()}
        self._window: deque[dict[int, Seconds]] = deque(maxlen=target.window)

    @property
    def rungs(self) -> dict[int, int]:
        """Device -> the rung of the ladder that its next request should use."""
        return {number: device.rung for number, device in self._devices.items()}

    @property
    def share(self) -> float:
        """Share of all requests in which each device may be late: the quantile's allowance, divided by the devices."""
        return (1 - self.target.quantile) / len(self._devices)

    def observe(self, seconds: Mapping[int, Seconds]) -> None:
        """Take in the time of every device for one request, and move the devices.

        A device that is left out stays at its rung: leave out devices without a request, or with a refusal. For a
        device that missed the deadline, which has to be above the target, give the deadline as both numbers.
        """
        self._window.append(dict(seconds))
        for number in seconds:
            self._devices[number].answered += 1
        late = sum(any(taken.total > self.target.seconds for taken in entry.values()) for entry in self._window)
        if late > (1 - self.target.quantile) * self.target.window + 1e-9:
            self._down(seconds)
        self._up(seconds)

    def _down(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            device = self._devices[number]
            late = sum(taken.total > self.target.seconds for taken in self._seen(number))
            cheaper = range(device.rung + 1, len(device.costs))
            if late <= self.share * self.target.window + 1e-9 or not cheaper:
                continue
            if device.climbed:
                device.failed = device.rung
                device.patience = min(2 * device.patience, SLOWEST * self.target.patience)
            self._move(number, next((rung for rung in cheaper if self._fits(number, rung)), cheaper[-1]))

    def _up(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            device = self._devices[number]
            if device.answered >= self.target.window:
                device.climbed = False
                if device.rung <= device.failed:
                    device.failed, device.patience = -1, self.target.patience
            dearer = device.rung - 1
            patience = device.patience if dearer <= device.failed else self.target.patience
            if dearer >= 0 and device.answered >= patience and self._fits(number, dearer):
                self._move(number, dearer)

    def _fits(self, number: int, rung: int) -> bool:
        """Return whether a device is expected to be in time at a rung, with room, except for its allowed share."""
        device = self._devices[number]
        ratio = device.costs[rung] / device.costs[device.rung]
        expected = sorted(taken.total + taken.compute * (ratio - 1) for taken in self._seen(number))
        if not expected:
            return False
        rank = math.ceil((1 - self.share) * len(expected) - 1e-9)
        return expected[rank - 1] <= self.target.room * self.target.seconds

    def _seen(self, number: int) -> list[Seconds]:
        return [entry[number] for entry in self._window if number in entry]

    def _move(self, number: int, rung: int) -> None:
        device = self._devices[number]
        device.climbed, device.rung, device.answered = rung < device.rung, rung, 0
        for entry in self._window:
            entry.pop(number, None)  # measured at another rung

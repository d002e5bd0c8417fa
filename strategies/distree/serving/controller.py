"""Holding a latency at run time: devices whose load or link changes move on the ladder of calibrated policies.

DistrEE (Peng et al., arXiv 2502.15735) sets thresholds once, by hand; this answers its open question of devices that
change while they serve.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.errors import UserError

SLOWEST = 16
"""A device that climbs in vain waits at most so many times its usual patience before it tries again."""


@dataclass(frozen=True)
class LatencyTarget:
    """What is held, and how patiently."""

    seconds: float
    quantile: float = 0.9  # this share of the requests in the window must be answered in time
    window: int = 40  # requests
    room: float = 0.9  # of the target, that a device may use up at the rung it goes to
    patience: int = 10  # requests at a rung before the device climbs to a dearer one

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        checks = (
            (self.seconds > 0, f"the latency target must be above 0 seconds, got {self.seconds}"),
            (0 < self.quantile < 1, f"the latency quantile must be between 0 and 1, got {self.quantile}"),
            (0 < self.room <= 1, f"the room must be above 0 and at most 1, got {self.room}"),
            (1 <= self.patience <= self.window, f"the patience must be 1 to {self.window} (the window)"),
        )
        return [sentence for fine, sentence in checks if not fine]


class Seconds(NamedTuple):
    """What one device took for one request."""

    total: float
    """Until its last features arrived."""
    compute: float
    """Of these, its own computing, which is what another rung changes."""


@dataclass
class _Device:
    costs: Sequence[float]
    patience: int
    """Requests to wait for before it climbs to `failed`."""
    rung: int = 0
    answered: int = 0
    """Requests at this rung."""
    climbed: bool = False
    """It came to this rung from a cheaper one, and has not been here for a window."""
    failed: int = -1
    """The rung that it climbed to in vain; -1: none."""


class LatencyController:
    """Gives each device its rung of the ladder, from what requests took: rung 0 is everybody at the last exit.

    Down at once: when more requests of the window than the quantile allows were late, the devices that used up more
    than their share of what it allows go to the dearest rung that is expected to fit, at least one down; the others
    stay. Up slowly: one rung, after `patience` requests, if the dearer rung is expected to fit with some room to spare.
    A climb that has to be taken back doubles the patience before that rung is tried again, until it holds for a window.

    Expected of a rung: the device's link as it was seen, and its computing in proportion to the rungs' costs.
    """

    def __init__(self, costs: Mapping[int, Sequence[float]], target: LatencyTarget) -> None:
        """`costs`: device -> its mean cost at every rung, of any unit, never rising.

        Raises `UserError` when the target or the costs make no sense.
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
        """Of all requests, how many each device may be late in: what the quantile allows, divided among them."""
        return (1 - self.target.quantile) / len(self._devices)

    def observe(self, seconds: Mapping[int, Seconds]) -> None:
        """Learn what every device took for one request, and move.

        Devices that are left out stay where they are: leave out whoever was not asked, or refused. For one that missed
        the deadline, which has to be above the target, give the deadline twice.
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
        """Return whether a device is expected to be in time at a rung, but for its share, with room to spare."""
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
            entry.pop(number, None)  # it tells of another rung

"""How long a client's round takes on its own device, from the method's `Effort` and the device's `Profile`.

    seconds = factor * (2 * macs / compute + 8 * bytes / bandwidth + latency * exchanges)

`macs` are those of all passes, with two floating-point operations each; a training step costs three forward passes.
`bytes` are the arrays that this one device receives and sends: its part's weights, not the message that the
simulation's nodes share, and not the few kilobytes of JSON beside them. Computing and sending do not overlap. `factor`
is 1, or drawn per round and client (`clients.time-spread`). Seconds are rounded to microseconds, so that the last bit
of a machine's logarithm decides nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from common.messages.protocol import ClientReport
from common.profiles import Profile
from common.seeding import derive_seed
from strategies.method import ServerMethod

DIGITS = 6  # of a second that count


@dataclass(frozen=True)
class Work:
    """One client's work for one round, in seconds since the run began."""

    report: ClientReport
    part: int
    round: int  # in which it was asked
    start: float
    seconds: float  # that it takes
    link: float  # of them those on the link
    until: float  # when it ends, done or given up

    @property
    def answers(self) -> bool:
        """Whether it is done when it ends."""
        return self.until >= moment(self.start + self.seconds)

    @property
    def profile(self) -> Profile:
        """The device's."""
        return Profile(**self.report.profile)

    def busy(self, start: float, end: float) -> float:
        """Return its seconds between two moments."""
        return max(0.0, min(end, self.until) - max(start, self.start))


def moment(seconds: float) -> float:
    """Return a time in whole microseconds."""
    return round(seconds, DIGITS)


def duration(
    strategy: ServerMethod, round_: int, client: ClientReport, arrays: Mapping[str, np.ndarray]
) -> tuple[float, float]:
    """Return a client's seconds for a round, and those of them on the link.

    `arrays` are those that it gets for itself. `ServerMethod.prepare` comes first.
    """
    part, effort, profile = strategy.part(client), strategy.effort(client), Profile(**client.profile)
    states = [record for record, _ in strategy.shared_states([client]).values()]
    down = strategy.layouts[part].nbytes + sum(array.nbytes for array in arrays.values()) + effort.down
    down += sum(len(array.data) for record in states for array in record.values())
    up = strategy.uploads[part].nbytes + effort.up
    link = 8 * (down + up) / profile.bandwidth + profile.latency * effort.exchanges
    factor = spread(strategy.config.clients.time_spread, strategy.config.run.seed, round_, client.client)
    return moment(factor * (2 * effort.macs / profile.compute + link)), moment(factor * link)


def spread(sigma: float, seed: int, round_: int, client: int) -> float:
    """Return the lognormal factor exp(sigma * z) on a client's time, whose median is 1."""
    return math.exp(sigma * Random(derive_seed(seed, "time", round_, client)).gauss(0.0, 1.0)) if sigma else 1.0

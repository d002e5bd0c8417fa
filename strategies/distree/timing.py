"""What every exit takes on the devices that serve, by their own clocks: seconds in the place of MACs to calibrate with.

All devices are asked at the same time, one image at a time, as when they answer for real.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from torch import Tensor

from common.errors import UserError
from strategies.distree.aggregator import Aggregator
from strategies.distree.policies import FeatureDifference

WARM_UP, REPEATS = 5, 20


@dataclass(frozen=True)
class ExitTimes:
    """Medians of many images."""

    compute: Mapping[int, Sequence[float]]
    """Student -> seconds that its device computes until each exit, J numbers."""
    links: Mapping[int, float]
    """Student -> seconds that pass beside its device's computing until its features are here."""


def time_exits(aggregator: Aggregator, students: Sequence[int], num_exits: int, images: Tensor) -> ExitTimes:
    """Return what the exits take, on images uint8 (N, C, H, W).

    The exits take turns, so that a load that comes and goes does not make one of them look dear.

    Raises:
        UserError: a device does not answer in time, or an exit is reached by no image.
    """
    compute: dict[int, list[list[float]]] = {k: [[] for _ in range(num_exits)] for k in students}
    links: dict[int, list[float]] = {k: [] for k in students}
    for step in range(WARM_UP + REPEATS):
        image = images[step % len(images)][None]
        for exit_index in range(num_exits):
            answer = aggregator.infer(image, dict.fromkeys(students, leaving_at(exit_index, num_exits)))
            if answer.missing:
                number, reason = min(answer.missing.items())
                raise UserError(f"student {number} cannot be timed: {reason}")
            for k in students if step >= WARM_UP else ():
                compute[k][int(answer.exits[k])].append(answer.compute[k])
                links[k].append(answer.arrived[k] - answer.compute[k])
    for k, exits in compute.items():
        if [] in exits:
            raise UserError(f"student {k}: no image gets to exit {exits.index([]) + 1}, so it cannot be timed")
    return ExitTimes({k: [median(taken) for taken in exits] for k, exits in compute.items()}, _medians(links))


def leaving_at(exit_index: int, num_exits: int) -> FeatureDifference:
    """Return the policy by which everybody leaves at an exit (from 0).

    As with fitted thresholds the score is computed at every exit on the way, for at batch 1 that takes its time. Only
    features that have nothing at all in common with the first exit's (d = inf) leave before.
    """
    on_the_way = (math.inf, *(sys.float_info.max,) * num_exits)[:exit_index]  # nobody looks at the first exit's score
    return FeatureDifference((on_the_way + (0.0,) * num_exits)[: num_exits - 1])  # d is 1 or more


def _medians(values: Mapping[int, Sequence[float]]) -> dict[int, float]:
    return {k: median(found) for k, found in values.items()}

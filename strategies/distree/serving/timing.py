"""Time every exit on the serving devices: calibration then uses seconds instead of MACs.

All devices get each request at the same time, one image per request, as in real use.
"""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.policies import ScorePolicy
from strategies.distree.serving.aggregator import Aggregator

WARM_UP, REPEATS = 5, 100  # turns; a 99th percentile needs 100


def time_exits(
    aggregator: Aggregator, students: Sequence[int], num_exits: int, images: Tensor, kind: type[ScorePolicy]
) -> dict[int, Tensor]:
    """Return student -> seconds until its features arrive (J, R), float64: R times for each exit.

    One column is one turn through the exits: a passing load does not make a single exit look expensive, and delays that
    devices share stay in one column. R is `REPEATS`, or less where images leave before the requested exit.

    Args:
        aggregator: connected to the devices.
        students: their numbers.
        num_exits: J.
        images: uint8 (N, C, H, W).
        kind: whose scores the devices compute on the way.

    Raises:
        UserError: a device does not answer in time, or no image reaches an exit.
    """
    taken: dict[int, list[list[float]]] = {k: [[] for _ in range(num_exits)] for k in students}
    for step in range(WARM_UP + REPEATS):
        image = images[step % len(images)][None]
        for exit_index in range(num_exits):
            answer = aggregator.infer(image, dict.fromkeys(students, leaving_at(exit_index, num_exits, kind)))
            if answer.missing:
                number, reason = min(answer.missing.items())
                raise UserError(f"student {number} cannot be timed: {reason}")
            for k in students if step >= WARM_UP else ():
                taken[k][int(answer.exits[k])].append(answer.arrived[k])
    for k, exits in taken.items():
        if [] in exits:
            raise UserError(f"student {k} cannot be timed: no image reaches exit {exits.index([]) + 1}")
    times = min(len(own) for exits in taken.values() for own in exits)
    return {k: torch.tensor([own[:times] for own in exits], dtype=torch.float64) for k, exits in taken.items()}


def leaving_at(exit_index: int, num_exits: int, kind: type[ScorePolicy]) -> ScorePolicy:
    """Return the policy by which all samples leave at an exit (from 0).

    As with fitted thresholds, the device computes the score at every exit on the way, which takes a noticeable time at
    batch 1. Only an infinite score leaves before: that of features which are orthogonal to the first exit's.
    """
    on_the_way = (*(math.inf,) * kind.first, *(sys.float_info.max,) * num_exits)[:exit_index]
    return kind((on_the_way + (-1.0,) * num_exits)[: num_exits - 1])  # no score is below 0

"""What every exit takes on the devices that serve: seconds in the place of MACs to calibrate with.

All devices are asked at the same time, one image at a time, as when they answer for real.
"""

import math
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.policies import FeatureDifference
from strategies.distree.serving.aggregator import Aggregator

WARM_UP, REPEATS = 5, 100  # a 99th percentile needs that many


def time_exits(aggregator: Aggregator, students: Sequence[int], num_exits: int, images: Tensor) -> dict[int, Tensor]:
    """Return student -> seconds until its features are here (J, R), float64: of each exit, R times.

    One column is of one turn through the exits: a load that comes and goes does not make one of them look dear, and
    devices that wait for the same thing wait together. R is `REPEATS`, less where images leave before they are told to.

    Args:
        aggregator: asks the devices.
        students: their numbers.
        num_exits: J.
        images: uint8 (N, C, H, W).

    Raises:
        UserError: a device does not answer in time, or an exit is reached by no image.
    """
    taken: dict[int, list[list[float]]] = {k: [[] for _ in range(num_exits)] for k in students}
    for step in range(WARM_UP + REPEATS):
        image = images[step % len(images)][None]
        for exit_index in range(num_exits):
            answer = aggregator.infer(image, dict.fromkeys(students, leaving_at(exit_index, num_exits)))
            if answer.missing:
                number, reason = min(answer.missing.items())
                raise UserError(f"student {number} cannot be timed: {reason}")
            for k in students if step >= WARM_UP else ():
                taken[k][int(answer.exits[k])].append(answer.arrived[k])
    for k, exits in taken.items():
        if [] in exits:
            raise UserError(f"student {k}: no image gets to exit {exits.index([]) + 1}, so it cannot be timed")
    times = min(len(own) for exits in taken.values() for own in exits)
    return {k: torch.tensor([own[:times] for own in exits], dtype=torch.float64) for k, exits in taken.items()}


def leaving_at(exit_index: int, num_exits: int) -> FeatureDifference:
    """Return the policy by which everybody leaves at an exit (from 0).

    As with fitted thresholds the score is computed at every exit on the way, for at batch 1 that takes its time. Only
    features that have nothing at all in common with the first exit's (d = inf) leave before.
    """
    on_the_way = (math.inf, *(sys.float_info.max,) * num_exits)[:exit_index]  # nobody looks at the first exit's score
    return FeatureDifference((on_the_way + (0.0,) * num_exits)[: num_exits - 1])  # d is 1 or more

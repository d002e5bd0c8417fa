"""Time every exit on the serving devices: calibration then uses seconds instead of MACs.

All devices get each request at the same time, one image per request, as in real use.
"""

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.policies import ScorePolicy
from strategies.distree.serving.aggregator import Aggregator

WARM_UP, REPEATS = 5, 100  # turns; a 99th percentile needs 100


def time_exits(aggregator: Aggregator, rules: Mapping[int, ScorePolicy], images: Tensor) -> dict[int, Tensor]:
    """Return student -> seconds until its features arrive (J, R), float64: R times for each exit.

    One column is one turn through the exits: a passing load does not make a single exit look expensive, and delays that
    devices share stay in one column. R is `REPEATS`, or less where images leave before the requested exit.

    Args:
        aggregator: connected to the devices.
        rules: student -> the rule, of any thresholds, whose scores its device computes on the way.
        images: uint8 (N, C, H, W).

    Raises:
        UserError: a device does not answer in time, or no image reaches an exit.
    """
    num_exits = next(iter(rules.values())).num_exits
    taken: dict[int, list[list[float]]] = {k: [[] for _ in range(num_exits)] for k in rules}
    for step in range(WARM_UP + REPEATS):
        image = images[step % len(images)][None]
        for exit_index in range(num_exits):
            answer = aggregator.infer(image, {k: leaving_at(exit_index, rule) for k, rule in rules.items()})
            if answer.missing:
                number, reason = min(answer.missing.items())
                raise UserError(f"student {number} cannot be timed: {reason}")
            for k in rules if step >= WARM_UP else ():
                taken[k][int(answer.exits[k])].append(answer.arrived[k])
    for k, exits in taken.items():
        if [] in exits:
            raise UserError(f"student {k} cannot be timed: no image reaches exit {exits.index([]) + 1}")
    times = min(len(own) for exits in taken.values() for own in exits)
    return {k: torch.tensor([own[:times] for own in exits], dtype=torch.float64) for k, exits in taken.items()}


def leaving_at(exit_index: int, rule: ScorePolicy) -> ScorePolicy:
    """Return the rule with thresholds by which all samples leave at an exit (from 0).

    As with fitted thresholds, the device computes the score at every exit on the way, which takes a noticeable time at
    batch 1. Only an infinite score leaves before: that of features which are orthogonal to the first exit's.
    """
    greatest = sys.float_info.max
    on_the_way = (*(math.inf,) * rule.first, *(greatest,) * rule.num_exits)[:exit_index]
    return replace(rule, thresholds=(on_the_way + (-greatest,) * rule.num_exits)[: rule.num_exits - 1])

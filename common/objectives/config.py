"""Hyper-parameters of the local objectives."""

import math
from dataclasses import dataclass

from common.objectives.boosted import ENSEMBLE
from common.settings import Settings

OBJECTIVES = ("joint", "boosted", "l2w")


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """What a client minimises over its exits.

    Attributes:
        name: "joint", "boosted" (BoostNet, AAAI 2023) or "l2w" (L2W-DEN, ECCV 2022).
        exit_weights: joint only; weight of each exit's loss, () = 1 each.
        legacy_boost: boosted only; gradients as in DarkDistill's published code instead of BoostNet's.
        l2w_hidden: hidden units of the weight network (500, L2W-DEN's ImageNet command).
        l2w_lr: Adam learning rate of the weight network (1e-3 in DarkDistill; L2W-DEN 1e-4).
        l2w_weight_decay: Adam weight decay of the weight network (1e-4, same command).
        l2w_strength: how far weights may move from 1 (0.8 in DarkDistill; L2W-DEN 0.3).
        l2w_interval: batches from one meta update to the next (10 in DarkDistill; L2W-DEN 100).
        l2w_p: skew of the meta loss's exit assignment, 20 = uniform (30 in DarkDistill; L2W-DEN 15).
    """

    SECTION = "objective"

    name: str = "joint"
    exit_weights: tuple[float, ...] = ()
    legacy_boost: bool = False
    l2w_hidden: int = 500
    l2w_lr: float = 1e-3
    l2w_weight_decay: float = 1e-4
    l2w_strength: float = 0.8
    l2w_interval: int = 10
    l2w_p: float = 30.0

    @property
    def ensemble(self) -> float:
        """The `ensemble` coefficient that the network must be built with."""
        return ENSEMBLE if self.name == "boosted" else 0.0

    def problems(self) -> list[str]:
        """Return one line for each thing that is wrong; empty if all is well."""
        found: list[str] = []
        if self.name not in OBJECTIVES:
            found.append(f"objective {self.name!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
        if any(not 0 <= weight < math.inf for weight in self.exit_weights):
            found.append("exit weights must be finite and not negative")
        if self.exit_weights and not any(self.exit_weights):
            found.append("at least one exit weight must be above 0")
        if self.l2w_hidden < 1 or self.l2w_interval < 1:
            found.append("l2w hidden units and interval must be at least 1")
        if not 0 < self.l2w_lr < math.inf or not 0 <= self.l2w_weight_decay < math.inf:
            found.append("l2w learning rate must be above 0 and its weight decay at least 0")
        if not 0 <= self.l2w_strength <= 1:
            found.append("l2w strength must be in [0, 1]")
        if not 0 < self.l2w_p < math.inf:
            found.append("l2w p must be above 0")
        return found

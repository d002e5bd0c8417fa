"""The section `objective` of the configuration: hyper-parameters of the local objectives."""

import math
from dataclasses import dataclass

from common.objectives.boosted import ENSEMBLE
from common.settings import Settings, above_zero, at_least, at_most, one_of

OBJECTIVES = ("joint", "boosted", "l2w")


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """What a client minimises over its exits."""

    SECTION = "objective"

    name: str = "joint"  # "joint", "boosted" (BoostNet, AAAI 2023) or "l2w" (L2W-DEN, ECCV 2022)
    exit_weights: tuple[float, ...] = ()  # joint only: weight of each exit's loss; empty: 1 each
    legacy_boost: bool = False  # boosted only: gradients as in DarkDistill's published code instead of BoostNet's
    l2w_hidden: int = 500  # hidden units of the weight network (500, L2W-DEN's ImageNet command)
    l2w_lr: float = 1e-3  # Adam learning rate of the weight network (1e-3 in DarkDistill; L2W-DEN 1e-4)
    l2w_weight_decay: float = 1e-4  # Adam weight decay of the weight network (1e-4, L2W-DEN's ImageNet command)
    l2w_strength: float = 0.8  # how far weights may move from 1 (0.8 in DarkDistill; L2W-DEN 0.3)
    l2w_interval: int = 10  # batches from one meta update to the next (10 in DarkDistill; L2W-DEN 100)
    l2w_p: float = 30.0  # skew of the meta loss's exit assignment, 20 = uniform (30 in DarkDistill; L2W-DEN 15)

    @property
    def ensemble(self) -> float:
        """The `ensemble` coefficient that the network must be built with."""
        return ENSEMBLE if self.name == "boosted" else 0.0

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = one_of(self, name=OBJECTIVES) + above_zero(self, "l2w_lr", "l2w_p")
        found += at_least(self, l2w_hidden=1, l2w_interval=1, l2w_weight_decay=0.0, l2w_strength=0.0)
        found += at_most(self, l2w_strength=1.0)
        weights = ",".join(map(str, self.exit_weights))
        if any(not 0 <= weight < math.inf for weight in self.exit_weights):
            found.append(f"objective.exit-weights is {weights}, must be finite numbers of at least 0")
        if self.exit_weights and not any(self.exit_weights):
            found.append(f"objective.exit-weights is {weights}: at least one weight must be above 0")
        return found

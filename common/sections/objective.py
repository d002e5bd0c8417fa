"""The section `objective` of the configuration: hyper-parameters of the local objectives."""

from typing import Literal

from pydantic import Field

from common.settings import Floats, Settings, shown

ENSEMBLE = 0.2  # weight of the earlier exits' logits in F_e = z_e + ENSEMBLE * stopgrad(F_{e-1}), see `boosted`


class ObjectiveConfig(Settings):
    """What a client minimises over its exits."""

    SECTION = "objective"

    name: Literal["joint", "boosted", "l2w"] = "joint"
    """joint, boosted (BoostNet, AAAI 2023) or l2w (L2W-DEN, ECCV 2022)"""
    exit_weights: Floats = ()
    """joint: weight of each exit's loss; empty: 1 each"""
    legacy_boost: bool = False
    """boosted: gradients as in DarkDistill's published code instead of BoostNet's"""
    l2w_hidden: int = Field(500, ge=1)
    """hidden units of the weight network (500, L2W-DEN's ImageNet command)"""
    l2w_lr: float = Field(1e-3, gt=0)
    """Adam learning rate of the weight network (1e-3 in DarkDistill; L2W-DEN 1e-4)"""
    l2w_weight_decay: float = Field(1e-4, ge=0)
    """Adam weight decay of the weight network (1e-4, L2W-DEN's ImageNet command)"""
    l2w_strength: float = Field(0.8, ge=0, le=1)
    """how far weights may move from 1 (0.8 in DarkDistill; L2W-DEN 0.3)"""
    l2w_interval: int = Field(10, ge=1)
    """batches from one meta update (whose memory no cost table counts) to the next (10 in DarkDistill; L2W-DEN 100)"""
    l2w_p: float = Field(30.0, gt=0)
    """skew of the meta loss's exit assignment, 20: uniform (30 in DarkDistill; L2W-DEN 15)"""

    @property
    def ensemble(self) -> float:
        """The `ensemble` coefficient that the network must be built with."""
        return ENSEMBLE if self.name == "boosted" else 0.0

    def other_mistakes(self) -> list[str]:
        """Check the weights' signs."""
        if any(weight < 0 for weight in self.exit_weights):
            return [f"objective.exit-weights is {shown(self.exit_weights)}, every weight must be at least 0"]
        if self.exit_weights and not any(self.exit_weights):
            return [f"objective.exit-weights is {shown(self.exit_weights)}, at least one weight must be above 0"]
        return []


def unfit_weights(weights: tuple[float, ...], exits: int) -> str:
    """Return the sentence for another number of weights than the network has exits."""
    return f"objective.exit-weights is {shown(weights)}, but the network has {exits} exits: give one each"

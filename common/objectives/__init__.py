"""Local objectives over exits: joint, boosted (BoostNet), learned weights (L2W)."""

from common.errors import UserError
from common.objectives.base import Loss, Objective, exit_losses
from common.objectives.boosted import Boosted
from common.objectives.joint import Joint
from common.objectives.l2w import LearnedWeights
from common.sections.objective import ObjectiveConfig, unfit_weights

__all__ = [
    "Boosted",
    "Joint",
    "LearnedWeights",
    "Loss",
    "Objective",
    "ObjectiveConfig",
    "exit_losses",
    "make_objective",
]


def make_objective(config: ObjectiveConfig, num_exits: int, seed: int) -> Objective:
    """Return the objective of a network with `num_exits` exits; the same seed gives the same weight network.

    Raises:
        UserError: there are fewer weights than exits.
    """
    if config.exit_weights and len(config.exit_weights) < num_exits:
        raise UserError(unfit_weights(config.exit_weights, num_exits))
    if config.name == "boosted":
        return Boosted("legacy" if config.legacy_boost else "boost")
    if config.name == "l2w":
        return LearnedWeights(config, num_exits, seed)
    return Joint(config.exit_weights)

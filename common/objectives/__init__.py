"""Local objectives over exits: joint, boosted (BoostNet), learned weights (L2W)."""

from common.errors import UserError
from common.objectives.base import Loss, Objective, exit_losses
from common.objectives.boosted import Boosted
from common.objectives.config import OBJECTIVES, ObjectiveConfig
from common.objectives.joint import Joint
from common.objectives.l2w import LearnedWeights

__all__ = [
    "OBJECTIVES",
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
        UserError: listing everything wrong with the configuration.
    """
    problems = config.problems()
    if config.exit_weights and len(config.exit_weights) < num_exits:
        weights = ",".join(map(str, config.exit_weights))
        problems.append(f"objective.exit-weights is {weights}, but the network has {num_exits} exits: give one each")
    if problems:
        raise UserError("; ".join(problems))
    if config.name == "boosted":
        return Boosted("legacy" if config.legacy_boost else "boost")
    if config.name == "l2w":
        return LearnedWeights(config, num_exits, seed)
    return Joint(config.exit_weights)

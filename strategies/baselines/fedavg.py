"""FedAvg (McMahan et al., AISTATS 2017): the whole network, trained as if it had no early exits.

Only clients that declared the full depth take part, and they minimise the last exit's cross-entropy alone. The shallow
exits therefore get no gradient: they stay at their random start (but for weight decay), and only the last exit's
accuracy means anything. It shows what the early exits cost the last one.
"""

from dataclasses import dataclass

from torch import Tensor

from common.networks.base import EarlyExitNetwork
from common.objectives import Loss, Objective, exit_losses
from common.objectives.base import StatelessObjective
from strategies.baselines.base import FullDepthOnly
from strategies.method import Job, Method
from strategies.node.local_training import LocalTraining


@dataclass(frozen=True)
class LastExit(StatelessObjective):
    """`mean_b CE(z_E(x_b), y_b)`: the last exit's cross-entropy."""

    def loss(self, network: EarlyExitNetwork, x: Tensor, y: Tensor) -> Loss:
        """Return the loss of images `(B, C, H, W)` with labels `(B,)`."""
        losses = exit_losses(network(x), y)
        return Loss(losses[-1].mean(), losses.detach())


class FedAvg(FullDepthOnly):
    """Average the full networks, weighted by their clients' samples."""


class FedAvgLocal(LocalTraining):
    """E local epochs of SGD on the last exit's loss."""

    def objective(self, job: Job, exits: int) -> Objective:
        """Return the last exit's loss; the run's `objective` section does not apply."""
        return LastExit()


METHOD = Method("fedavg", FedAvg, FedAvgLocal, ensemble=lambda config: 0.0)

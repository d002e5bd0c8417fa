"""FedProx (Li et al., MLSys 2020): local training that is pulled back to the server's weights.

Clients minimise  loss(w) + mu / 2 * ||w - w_server||^2;  the server averages as EEFL does.
"""

from common.objectives.base import Objective
from strategies.baselines.settings import FedProxSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.node.proximal import Proximal


class FedProx(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""


class FedProxLocal(Proximal):
    """E local epochs of SGD, anchored at the server's weights."""

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the loaded model."""
        settings = job.config.of(FedProxSettings)
        self.pull, self.anchor = settings.mu, job.model.trained.detach().clone()
        return super().local_epochs(job, objective)


METHOD = Method("fedprox", FedProx, FedProxLocal, (FedProxSettings,))

"""FedProx (Li et al., MLSys 2020): local training that is pulled back to the server's weights.

Clients minimise  loss(w) + mu / 2 * ||w - w_server||^2;  the server averages as EEFL does.
"""

from dataclasses import dataclass

from common.objectives.base import Objective
from common.settings import Settings, at_least
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.node.proximal import Proximal


@dataclass(frozen=True)
class FedProxSettings(Settings):
    """Hyper-parameters of FedProx."""

    SECTION = "fedprox"

    mu: float = 0.05  # weight of the proximal term

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        return at_least(self, mu=0.0)


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

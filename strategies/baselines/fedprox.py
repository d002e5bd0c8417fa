"""FedProx (Li et al., MLSys 2020): local training that is pulled back to the server's weights.

Clients minimise  loss(w) + mu / 2 * ||w - w_server||^2;  the server averages as EEFL does.
"""

from dataclasses import dataclass

from torch import Tensor

from common.objectives.base import Objective
from common.settings import Settings, at_least
from strategies.engine.strategy import EarlyExitStrategy
from strategies.node.local_training import Job, LocalTraining
from strategies.registry import Method


@dataclass(frozen=True)
class FedProxSettings(Settings):
    """Hyper-parameters of FedProx."""

    SECTION = "fedprox"

    mu: float = 0.05  # weight of the proximal term

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        return at_least(self, mu=0.0)


class Proximal(LocalTraining):
    """Adds the gradient of  pull / 2 * ||w - anchor||^2  where there is an anchor."""

    def __init__(self) -> None:
        self.pull = 0.0
        self.anchor: Tensor | None = None  # (P,), the trained parameters to stay close to

    def regularise(self, job: Job) -> None:
        """Add `pull * (w - anchor)`."""
        if self.anchor is not None:
            assert job.model.trained.grad is not None
            job.model.trained.grad.add_(job.model.trained.detach() - self.anchor, alpha=self.pull)


class FedProx(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""

    name = "fedprox"


class FedProxLocal(Proximal):
    """E local epochs of SGD, anchored at the server's weights."""

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the loaded model."""
        settings = job.config.of(FedProxSettings)
        self.pull, self.anchor = settings.mu, job.model.trained.detach().clone()
        return super().local_epochs(job, objective)


METHOD = Method(FedProx, FedProxLocal)

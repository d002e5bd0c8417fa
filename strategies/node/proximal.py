"""Local training that is pulled back to an anchor: what FedProx and Ditto add to SGD."""

from torch import Tensor

from strategies.method import Job
from strategies.node.local_training import LocalTraining


class Proximal(LocalTraining):
    """Adds the gradient of  pull / 2 * ||w - anchor||^2  where an anchor is set."""

    def __init__(self) -> None:
        self.pull = 0.0
        self.anchor: Tensor | None = None  # (P,), the trained parameters to stay close to

    def regularise(self, job: Job) -> None:
        """Add `pull * (w - anchor)`."""
        if self.anchor is not None:
            assert job.model.trained.grad is not None
            job.model.trained.grad.add_(job.model.trained.detach() - self.anchor, alpha=self.pull)

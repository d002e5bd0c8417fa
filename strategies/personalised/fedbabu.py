"""FedBABU (Oh et al., ICLR 2022): only the body is updated and aggregated; heads wait for the end.

1. A client trains the backbone alone under heads that stay as the run's seed made them, the same for all clients.
2. The server averages the backbones, weighted by samples.
3. Before its network is used, a client fine-tunes all of it on its own samples for `personal.finetune-epochs`.
"""

from common.objectives.base import Objective
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job, Method
from strategies.personalised.base import FineTuning, PersonalTraining, backbone, is_head
from strategies.personalised.settings import PersonalSettings


class FedBABU(EarlyExitStrategy):
    """Average the backbone."""


class FedBABULocal(FineTuning, PersonalTraining):
    """The body under fixed heads; everything at the end."""

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the backbone."""
        return self.fit(job, objective, job.model.leaf(lambda key: not is_head(key)), job.config.train.epochs)


METHOD = Method("fedbabu", FedBABU, FedBABULocal, (PersonalSettings,), personal=True, travels=backbone)

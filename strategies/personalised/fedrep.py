"""FedRep (Collins et al., ICML 2021): a shared representation under personal heads, trained in turn.

1. A client trains its own heads for several epochs on the server's backbone, which is fixed meanwhile.
2. It then trains the backbone for `train.epochs` under those heads, fixed in their turn.
3. The server averages the backbones, weighted by samples.
"""

from dataclasses import replace

from common.messages.protocol import ClientReport
from common.objectives.base import Objective
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Effort, Job, Method
from strategies.personalised.base import PersonalTraining, backbone, is_head
from strategies.personalised.settings import FedRepSettings, PersonalSettings


class FedRep(EarlyExitStrategy):
    """Average the backbone."""

    def effort(self, client: ClientReport) -> Effort:
        """Count an epoch of heads as a forward pass: nothing goes back through the backbone."""
        effort, epochs = super().effort(client), self.config.of(FedRepSettings).head_epochs
        forward = self.parts.macs(self.part(client)) * client.num_examples
        return replace(effort, macs=effort.macs + epochs * forward)


class FedRepLocal(PersonalTraining):
    """Heads first, then the backbone."""

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the two parts one after the other; return the loss of the second phase."""
        settings = job.config.of(FedRepSettings)
        self.fit(job, objective, job.model.leaf(is_head), settings.head_epochs, "heads")
        return self.fit(job, objective, job.model.leaf(lambda key: not is_head(key)), job.config.train.epochs)


METHOD = Method("fedrep", FedRep, FedRepLocal, (FedRepSettings, PersonalSettings), personal=True, travels=backbone)

"""Ditto (Li et al., ICML 2021): a global network, and a personal one beside it that is pulled towards the global one.

1. A client trains the server's weights w on all exits and uploads them: FedAvg, unchanged.
2. It trains its own network v by  loss(v) + lambda / 2 * ||v - w_server||^2  and keeps it; v starts as w_server.
"""

from dataclasses import replace

from common.capacity import TRAINING_MACS
from common.messages.protocol import ClientReport
from common.storage.client_store import ClientState
from common.weights.flat import FlatState
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Effort, Job, Method, Outcome
from strategies.node.proximal import Proximal
from strategies.personalised.base import OWN
from strategies.personalised.settings import DittoSettings


class Ditto(EarlyExitStrategy):
    """Average everything; the personal networks stay with the clients."""

    def effort(self, client: ClientReport) -> Effort:
        """Count the personal network's epochs too."""
        effort, epochs = super().effort(client), self.config.of(DittoSettings).epochs or self.config.train.epochs
        personal = TRAINING_MACS * self.parts.macs(self.part(client)) * client.num_examples * epochs
        return replace(effort, macs=effort.macs + personal)


class DittoLocal(Proximal):
    """FedAvg's client, then the personal network."""

    def load(self, job: Job, state: FlatState) -> None:
        """Start from the server's weights, and remember them."""
        self.server, self.anchor = state, None
        job.model.load(state)

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Train the personal network, anchored at the server's weights; keep it whole."""
        settings = job.config.of(DittoSettings)
        job.model.load(self.server)
        self.pull, self.anchor = settings.pull, job.model.trained.detach().clone()
        self.personalise(job)
        objective = self.objective(job, len(job.model.module.exit_positions))
        self.fit(job, objective, job.model.trained, settings.epochs or job.config.train.epochs, "personal")
        own = job.model.read(job.model.upload_layout).state_dict()
        tensors = {OWN + key: value for key, value in own.items()}
        outcome.kept = ClientState(tensors | (outcome.kept.tensors if outcome.kept else {}))
        return outcome

    def personalise(self, job: Job) -> None:
        """Take the client's own network; one that never trained has the global one."""
        job.model.load_dict({**self.server.state_dict(), **job.stored(OWN)})


METHOD = Method("ditto", Ditto, DittoLocal, (DittoSettings,), personal=True)

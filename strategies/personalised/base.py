"""Personal networks: what every method shares in which clients end with networks of their own.

The server averages the keys that travel; the client keeps the others in its store, from round to round and over
restarts. A client that was never sampled has the server's backbone under the heads that the run's seed makes, the same
for all clients.
"""

from collections.abc import Callable

import torch
from torch.optim.swa_utils import update_bn

from common.config import RunConfig
from common.data.batches import batches
from common.seeding import generator
from common.storage.client_store import ClientState
from common.weights.flat import FlatState
from strategies.method import Job, Outcome
from strategies.node.local_training import LocalTraining
from strategies.personalised.settings import PersonalSettings

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
OWN = "own."  # prefix of the client's part of the network in its store


def is_head(key: str) -> bool:
    """Return whether a key belongs to an exit head."""
    return key.startswith("exits.")


def is_statistic(key: str) -> bool:
    """Return whether a key is one of BatchNorm's running statistics."""
    return key.rpartition(".")[2] in STATISTICS


def backbone(config: RunConfig, key: str) -> bool:
    """Return whether a key is averaged where heads are personal."""
    settings = config.of(PersonalSettings)
    return not is_head(key) and (settings.batchnorm == "averaged" or not is_statistic(key))


class PersonalTraining(LocalTraining):
    """The client half: what does not travel is kept and comes back with the next task."""

    def load(self, job: Job, state: FlatState) -> None:
        """Put the shared weights and the client's own together."""
        job.model.load_dict({**job.initial(), **state.state_dict(), **job.stored(OWN)})

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Keep what did not travel."""
        own = job.model.read(job.model.upload_layout.only(lambda key: not job.travels(key)))
        tensors = {OWN + key: value for key, value in own.state_dict().items()}
        outcome.kept = ClientState(tensors | (outcome.kept.tensors if outcome.kept else {}))
        return outcome

    def personalise(self, job: Job) -> None:
        """Estimate BatchNorm's statistics if some are local and this client has not got them all yet."""
        local = [key for key in job.model.layout.keys if is_statistic(key) and not job.travels(key)]
        if not job.stored(OWN).keys() >= set(local):
            estimate_statistics(job)


class FineTuning(LocalTraining):
    """Trains some more on the client's own samples before its network is used."""

    part: Callable[[str], bool] = staticmethod(lambda key: True)

    def personalise(self, job: Job) -> None:
        """Train for `personal.finetune-epochs` with the local objective."""
        settings = job.config.of(PersonalSettings)
        super().personalise(job)
        objective = self.remembered_objective(job)
        self.fit(job, objective, job.model.leaf(self.part), settings.finetune_epochs, "fine-tuning")


@torch.no_grad()
def estimate_statistics(job: Job) -> None:
    """Set BatchNorm's local statistics to the mean over one pass through the client's training samples."""
    source = generator(job.config.run.seed, "statistics", job.round, job.client)
    network, x = job.model.module, job.x
    averaged = {key: value.clone() for key, value in network.state_dict().items() if job.travels(key)}
    update_bn((x[batch] for batch in batches(len(x), job.config.train.batch_size, source)), network)
    job.model.load_dict({**network.state_dict(), **averaged})  # `update_bn` overwrites those of every layer

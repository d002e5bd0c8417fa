"""The client half that most methods share: local epochs of SGD on the tier's prefix.

A method's client half is a `LocalMethod`; the node's host calls it for each client in turn. State comes in with
the job and goes out with the outcome.
"""

from collections.abc import Generator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

from common.data.batches import batches
from common.devices import autocast
from common.networks import EarlyExitNetwork
from common.objectives import Loss, make_objective
from common.objectives.base import Objective
from common.seeding import derive_seed, generator, seed_global
from common.storage.client_store import ClientState
from common.storage.model_file import FILE, ModelInfo, save_model
from common.weights.flat import FlatState
from strategies.method import Job, Outcome

OBJECTIVE = "objective.{}."  # prefix of the local objective's state for so many exits in the client's store


class LocalTraining:
    """E local epochs of mini-batch SGD with the configured objective (FedAvg's client)."""

    def objective(self, job: Job, exits: int) -> Objective:
        """Return the local loss over exits."""
        return make_objective(job.config.objective, exits, derive_seed(job.config.run.seed, "objective", job.client))

    def observe(self, job: Job, batch: Tensor, loss: Loss, last_epoch: bool) -> None:
        """See each batch's loss just before its step; `batch` indexes the client's samples."""

    def regularise(self, job: Job) -> None:
        """Add to the gradients what the method adds to the loss, just before each step."""

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Add to the outcome what the method uploads and keeps."""
        return outcome

    def load(self, job: Job, state: FlatState) -> None:
        """Start from the server's weights."""
        job.model.load(state)

    def personalise(self, job: Job) -> None:
        """The global model is the client's."""

    def network(self, job: Job) -> EarlyExitNetwork:
        """Return the model's."""
        return job.network

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write a bundle."""
        save_model(folder / FILE, job.network.state_dict(), info)

    def steps(self, job: Job) -> Generator[None, None, Outcome]:
        """Train one client for one round, in one go."""
        yield from ()
        return self.train(job)

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the loaded model; return the mean loss over samples and exits."""
        return self.fit(job, objective, job.model.trained, job.config.train.epochs)

    def remembered_objective(self, job: Job) -> Objective:
        """Return the local loss as the client's last round left it, at another depth a new one."""
        exits = len(job.network.exit_positions)
        objective = self.objective(job, exits)
        if kept := job.stored(OBJECTIVE.format(exits)):
            objective.load_state_dict(kept)
        return objective

    def train(self, job: Job) -> Outcome:
        """Train one client for one round."""
        objective = self.remembered_objective(job)
        loss = self.local_epochs(job, objective)
        prefix = OBJECTIVE.format(len(job.network.exit_positions))
        kept = {prefix + key: value for key, value in objective.state_dict().items()}
        metrics = {} if loss is None else {"loss": loss}
        outcome = Outcome(job.model.read(job.upload_layout), metrics, {}, ClientState(kept) if kept else None)
        return self.finish(job, outcome)

    def fit(
        self, job: Job, objective: Objective, leaf: nn.Parameter, epochs: int, purpose: str = "batches"
    ) -> float | None:
        """Train the model's part `leaf` by SGD; return the mean loss over samples and exits.

        `purpose` seeds the order of the batches, so that two phases of a round see different ones. Nothing is read from
        the device before the last step, so a GPU always has work queued.
        """
        section, network, lr = job.config.train, job.network, float(job.round_values["lr"])
        buffers: list[Tensor | None] = [None]  # the momentum, from the first step on
        source = generator(job.config.run.seed, purpose, job.round, job.client)
        # dropout draws from the global state, which a worker's clients share
        seed_global(job.device, derive_seed(job.config.run.seed, "dropout", job.round, job.client))
        if not network.training:
            network.train()
        total, seen = torch.zeros((), device=job.device), 0
        for epoch in range(epochs):
            for batch in batches(len(job.y), section.batch_size, source, job.device):
                x, y = job.x[batch], job.y[batch]
                objective.before_step(network, x, y, lr)
                job.model.zero_grad()
                with autocast(job.device, job.config.clients.autocast):
                    loss = objective.loss(network, x, y)
                self.observe(job, batch, loss, epoch == epochs - 1)
                loss.total.backward()
                self.regularise(job)
                assert leaf.grad is not None
                # torch.optim.SGD is this function, but its first use imports torch's compiler: a second and 70 MB
                with torch.no_grad():
                    sgd(
                        [leaf], [leaf.grad], buffers, lr=lr, momentum=section.momentum,
                        weight_decay=section.weight_decay, dampening=0.0, nesterov=False, maximize=False,
                    )  # fmt: skip
                total += loss.per_exit.sum()
                seen += loss.per_exit.numel()
        return float(total) / seen if seen else None

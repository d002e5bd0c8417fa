"""The client half that most methods share: local epochs of SGD on the tier's prefix.

A method's client half is a `LocalMethod`; the node's host calls `train` for each client in turn and knows nothing of
the method. State comes in with the job and goes out with the outcome.
"""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from common.config import RunConfig
from common.data.batches import batches
from common.data.clients import ClientData
from common.devices import autocast
from common.networks import EarlyExitNetwork
from common.objectives import Loss, make_objective
from common.objectives.base import Objective
from common.seeding import derive_seed, generator, seed_global
from common.storage.client_store import ClientState
from common.storage.model_file import FILE, ModelInfo, save_model
from common.weights.flat import FlatModel, FlatState, Layout, StateDict

OBJECTIVE = "objective.{}."  # prefix of the local objective's state for so many exits in the client's store


def everything(key: str) -> bool:
    """Every key travels."""
    return True


@dataclass
class Job:
    """One client's work in one round. The model already holds the weights to start from."""

    client: int
    part: int
    round: int
    config: RunConfig
    model: FlatModel[EarlyExitNetwork]
    device: torch.device
    data: Callable[[], ClientData]  # called only by who needs them
    round_values: Mapping[str, Any] = field(default_factory=dict)  # the order's plain values
    client_values: Mapping[str, Any] = field(default_factory=dict)  # the task's plain values
    client_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # the task's arrays
    kept: ClientState = field(default_factory=ClientState)  # what this client kept from its last committed round
    travels: Callable[[str], bool] = everything  # which keys of the model the server averages
    initial: Callable[[], StateDict] = dict  # the model as the run's seed makes it
    states: Mapping[str, FlatState] = field(default_factory=dict)  # all that the message carries, by name

    @property
    def upload_layout(self) -> Layout:
        """Keys and shapes of what this client uploads."""
        return self.model.upload_layout.only(self.travels)

    def stored(self, prefix: str) -> StateDict:
        """Return the kept tensors below a prefix, without it."""
        tensors = self.kept.tensors.items()
        return {key.removeprefix(prefix): value for key, value in tensors if key.startswith(prefix)}

    @cached_property
    def x(self) -> Tensor:
        """Normalised training images (N, C, H, W), on the device."""
        return self.data().x

    @cached_property
    def y(self) -> Tensor:
        """Their labels (N,), int64."""
        return self.data().y


@dataclass
class Outcome:
    """What a job gave: the trained state, metrics, arrays for the server, and what the client keeps."""

    state: FlatState | None
    metrics: dict[str, float] = field(default_factory=dict)
    client_arrays: dict[str, np.ndarray] = field(default_factory=dict)
    kept: ClientState | None = None


class LocalMethod(Protocol):
    """A method's client half."""

    def load(self, job: Job, state: FlatState) -> None:
        """Put the weights to start from into the job's model; `state` is what the server sent."""
        ...

    def steps(self, job: Job) -> Generator[None, None, Outcome]:
        """Train one client for one round; at every `yield` the node may go on with another client."""
        ...

    def personalise(self, job: Job) -> None:
        """Turn the loaded model into the one that this client would use, before it is evaluated or delivered."""
        ...

    def network(self, job: Job) -> EarlyExitNetwork:
        """Return the network that this client evaluates, made of the personalised model."""
        ...

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write the personalised model for inference without a server."""
        ...


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
        return job.model.module

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write a bundle."""
        save_model(folder / FILE, job.model.module.state_dict(), info)

    def steps(self, job: Job) -> Generator[None, None, Outcome]:
        """Train one client for one round, in one go."""
        yield from ()
        return self.train(job)

    def local_epochs(self, job: Job, objective: Objective) -> float | None:
        """Train the loaded model; return the mean loss over samples and exits."""
        return self.fit(job, objective, job.model.trained, job.config.train.epochs)

    def remembered_objective(self, job: Job) -> Objective:
        """Return the local loss as the client's last round left it, at another depth a new one."""
        exits = len(job.model.module.exit_positions)
        objective = self.objective(job, exits)
        if kept := job.stored(OBJECTIVE.format(exits)):
            objective.load_state_dict(kept)
        return objective

    def train(self, job: Job) -> Outcome:
        """Train one client for one round."""
        objective = self.remembered_objective(job)
        loss = self.local_epochs(job, objective)
        prefix = OBJECTIVE.format(len(job.model.module.exit_positions))
        kept = {prefix + key: value for key, value in objective.state_dict().items()}
        metrics = {} if loss is None else {"loss": loss}
        outcome = Outcome(job.model.read(job.upload_layout), metrics, {}, ClientState(kept) if kept else None)
        return self.finish(job, outcome)

    def fit(
        self, job: Job, objective: Objective, leaf: nn.Parameter, epochs: int, purpose: str = "batches"
    ) -> float | None:
        """Train the model's part `leaf` by SGD; return the mean loss over samples and exits.

        `purpose` seeds the order of the batches, so that two phases of a round see different ones.
        """
        section, network, lr = job.config.train, job.model.module, float(job.round_values["lr"])
        optimizer = torch.optim.SGD([leaf], lr=lr, momentum=section.momentum, weight_decay=section.weight_decay)
        source = generator(job.config.run.seed, purpose, job.round, job.client)
        # dropout draws from the global state, which a worker's clients share
        seed_global(job.device, derive_seed(job.config.run.seed, "dropout", job.round, job.client))
        if not network.training:
            network.train()
        total, seen = torch.zeros((), device=job.device), 0
        for epoch in range(epochs):
            for batch in batches(len(job.y), section.batch_size, source):
                x, y = job.x[batch], job.y[batch]
                objective.before_step(network, x, y, lr)
                job.model.zero_grad()
                with autocast(job.device, job.config.clients.autocast):
                    loss = objective.loss(network, x, y)
                self.observe(job, batch, loss, epoch == epochs - 1)
                loss.total.backward()
                self.regularise(job)
                optimizer.step()
                total += loss.per_exit.sum()
                seen += loss.per_exit.numel()
        return float(total) / seen if seen else None

"""The client half that most methods share: local epochs of SGD on the tier's prefix.

A method's client half is a `LocalMethod`; the node's host calls `train` for each client in turn and knows nothing of
the method. State comes in with the job and goes out with the outcome.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from common.client_store import ClientState
from common.config import RunConfig
from common.data.batches import batches
from common.data.clients import ClientData
from common.devices import autocast
from common.flat import FlatModel, FlatState, Layout
from common.networks import EarlyExitNetwork
from common.objectives import Loss, make_objective
from common.objectives.base import Objective
from common.seeding import derive_seed, generator, seed_global


@dataclass
class Job:
    """One client's work in one round. The model already holds the weights to start from."""

    client: int
    depth: int
    round: int
    config: RunConfig
    model: FlatModel[EarlyExitNetwork]
    device: torch.device
    data: Callable[[], ClientData]  # called only by who needs them
    method: Mapping[str, Any] = field(default_factory=dict)  # the order's plain values
    extra: Mapping[str, Any] = field(default_factory=dict)  # the task's plain values
    entries: Mapping[str, np.ndarray] = field(default_factory=dict)  # the task's arrays
    kept: ClientState = field(default_factory=ClientState)  # what this client kept from its last committed round

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
    entries: dict[str, np.ndarray] = field(default_factory=dict)
    kept: ClientState | None = None


class LocalMethod(Protocol):
    """A method's client half."""

    def train(self, job: Job) -> Outcome:
        """Train one client for one round."""
        ...

    def layout(self, model: FlatModel[EarlyExitNetwork]) -> Layout:
        """Return the keys and shapes of the state that a client uploads."""
        ...


class LocalTraining:
    """E local epochs of mini-batch SGD with the configured objective (FedAvg's client)."""

    def objective(self, job: Job, exits: int) -> Objective:
        """Return the local loss over exits."""
        return make_objective(job.config.objective, exits, derive_seed(job.config.run.seed, "objective", job.client))

    def observe(self, job: Job, batch: Tensor, loss: Loss, last_epoch: bool) -> None:
        """See each batch's loss just before its step; `batch` indexes the client's samples."""

    def finish(self, job: Job, outcome: Outcome) -> Outcome:
        """Add to the outcome what the method uploads."""
        return outcome

    def layout(self, model: FlatModel[EarlyExitNetwork]) -> Layout:
        """All of the tier's prefix is uploaded but what is frozen."""
        return model.upload_layout

    def train(self, job: Job) -> Outcome:
        """Train one client for one round."""
        section, network = job.config.train, job.model.module
        objective = self.objective(job, len(network.exit_positions))
        if job.kept.tensors:
            objective.load_state_dict(job.kept.tensors)
        lr = float(job.method["lr"])
        optimizer = torch.optim.SGD(
            [job.model.trained], lr=lr, momentum=section.momentum, weight_decay=section.weight_decay
        )
        source = generator(job.config.run.seed, "batches", job.round, job.client)
        # dropout draws from the global state, which a worker's clients share
        seed_global(job.device, derive_seed(job.config.run.seed, "dropout", job.round, job.client))
        if not network.training:
            network.train()
        total, seen = torch.zeros((), device=job.device), 0
        for epoch in range(section.epochs):
            for batch in batches(len(job.y), section.batch_size, source):
                x, y = job.x[batch], job.y[batch]
                objective.before_step(network, x, y, lr)
                job.model.zero_grad()
                with autocast(job.device, job.config.clients.autocast):
                    loss = objective.loss(network, x, y)
                self.observe(job, batch, loss, epoch == section.epochs - 1)
                loss.total.backward()
                optimizer.step()
                total += loss.per_exit.sum()
                seen += loss.per_exit.numel()
        kept = objective.state_dict()
        outcome = Outcome(
            job.model.upload(), {"loss": float(total) / seen} if seen else {}, {}, ClientState(kept) if kept else None
        )
        return self.finish(job, outcome)

"""Hetero-SplitEE's client half (Oda et al., arXiv 2512.09313): first layers with an exit, features streamed.

For each mini-batch:

1. Forward through the device's units and its exit.
2. Send the features and the labels, of the weights before the step.
3. Step by the exit's loss alone. Nothing comes back.

With `splitee.gradient="return"` the device waits for the gradient of the server's loss instead (split learning).
Units, exit and momentum stay with the client from round to round.
"""

from collections.abc import Generator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import grpc
import torch
from torch import Tensor, nn

from common.data.batches import batches
from common.rpc.channels import Limits, connect
from common.sections.stream import StreamSettings
from common.seeding import derive_seed, generator, seed_global
from common.storage.client_store import ClientState
from common.storage.model_file import FILE, ModelInfo, save_model
from common.weights.flat import FlatState, StateDict
from strategies.hetero_splitee.client_step import finish, forward, local_step
from strategies.hetero_splitee.learner import MOMENTUM, Learner, Sgd, statistics
from strategies.hetero_splitee.origin import CLIENT, Origin
from strategies.hetero_splitee.prior import log_prior
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.stream import FeatureStream, offload
from strategies.method import Job, Outcome

ADDRESS, TOKEN, CERTIFICATE, MESSAGE_BYTES = "address", "token", "certificate", "message_bytes"  # the stream's facts
VERSION, FRESH = "version", "fresh"  # round that the server's models are of; modules of which its average is newer


class SplitTraining:
    """Trains a device's part and streams what comes out of it."""

    def load(self, job: Job, state: FlatState) -> None:
        """Take the client's own part, what it never had from the server, and the server's average where it is newer.

        With `splitee.statistics="own"` the client's own running statistics stay.
        """
        sent, fresh = state.state_dict(), set(job.client_values.get(FRESH, ()))
        newer = {key: value for key, value in sent.items() if module_of(key) in fresh}
        stay: StateDict = {}
        if job.config.of(SplitEESettings).statistics == "own":
            stay = {key: job.kept.tensors[key] for key in statistics(job.model.module) if key in job.kept.tensors}
        job.model.load_dict({**job.initial(), **sent, **job.kept.tensors, **newer, **stay})

    def steps(self, job: Job) -> Generator[None, None, Outcome]:
        """Train for a round; at every `yield` the node's other clients take their turn.

        Their order must be the server's, or the node would wait for an answer that waits for its other clients: by
        mini-batch, and then with all of a turn's batches sent before any gradient is waited for, or by epoch.
        """
        settings = job.config.of(SplitEESettings)
        section, device = job.config.train, self._learner(job)
        sgd = Sgd(float(job.round_values["lr"]), section.momentum, section.weight_decay)
        source = generator(job.config.run.seed, "batches", job.round, job.client)
        epochs = [batches(len(job.y), section.batch_size, source) for _ in range(section.epochs)]
        order, by_batch = [batch for epoch in epochs for batch in epoch], settings.granularity == "batch"
        total, prior = torch.zeros((), device=job.device), _prior(job)
        with self._stream(job, settings) as stream:
            for index, batch in enumerate(order):
                # dropout draws from the global state, which a node's clients share
                seed_global(job.device, derive_seed(job.config.run.seed, "dropout", job.round, job.client, index))
                x, y = job.x[batch], job.y[batch]
                if settings.gradient == "return":
                    outputs = forward(device, x)
                    sent = stream.send(outputs.trunk.detach().cpu(), y.cpu())
                    if by_batch:
                        yield
                    gradient = stream.wait_gradient(sent, outputs.trunk.shape)
                    loss = finish(device, sgd, outputs, y, gradient.to(job.device), settings.exit_weight, prior)
                else:
                    features, loss = local_step(device, sgd, x, y, prior)
                    stream.send(features.cpu(), y.cpu())
                total += loss
                if by_batch or (index + 1) % len(epochs[0]) == 0:
                    yield
            stream.finish()
        state = job.model.read(job.upload_layout) if job.upload_layout.keys else None
        kept = {key: value.cpu() for key, value in device.state_dict().items()}
        metrics = {"loss": float(total) / len(order)} if order else {}
        return Outcome(state, metrics, kept=ClientState(kept))

    @torch.no_grad()
    def personalise(self, job: Job) -> None:
        """Put the client's prior, if it has one, into its exit's bias: the device's part is then the client's."""
        if (prior := _prior(job)) is not None:
            job.network.head(job.part).linear.bias.add_(prior)

    def network(self, job: Job) -> nn.Module:
        """Return the device's exit and, behind it, the server's last one."""
        return SplitNetwork(job)

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write the device's part."""
        whose = replace(info, values={**info.values, CLIENT: job.client})
        save_model(folder / FILE, job.network.state_dict(), whose)

    def _learner(self, job: Job) -> Learner:
        device = Learner(job.model)
        device.network.train()
        device.load_state_dict({k: v for k, v in job.kept.tensors.items() if k.startswith(MOMENTUM)})
        return device

    def _stream(self, job: Job, settings: SplitEESettings) -> FeatureStream:
        stream = job.config.of(StreamSettings)
        return FeatureStream(
            _channel(job), _origin(job), coding=settings.coding, window=stream.window, deadline=job.config.patience
        )


class SplitNetwork(nn.Module):
    """A device's part, and the server behind it, as a network of two exits."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.device_part, self.job = job.network, job

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the logits (B, classes) of the device's exit and of the server's."""
        job, outputs = self.job, self.device_part.forward_exits(x)
        settings = job.config.of(SplitEESettings)
        answers = [
            offload(_channel(job), _origin(job), part.cpu(), self.device_part.num_classes, coding=settings.coding)
            for part in outputs.trunk.split(job.config.train.batch_size)
        ]
        return [outputs.logits[-1], torch.cat(answers).to(x.device)]


def module_of(key: str) -> str:
    """Return the unit or exit that a key belongs to, such as "units.3"."""
    return ".".join(key.split(".")[:2])


def _prior(job: Job) -> Tensor | None:
    """Return what adjusts the client's exit (classes,), on the device; None without `splitee.prior="own"`."""
    if job.config.of(SplitEESettings).prior == "none":
        return None
    return log_prior(torch.bincount(job.y, minlength=job.network.num_classes))


def _origin(job: Job) -> Origin:
    return Origin(job.config.run.name, job.client, job.part, job.round, int(job.round_values[VERSION]))


def _channel(job: Job) -> grpc.Channel:
    facts = job.round_values
    return _connected(facts[ADDRESS], facts[TOKEN], facts[CERTIFICATE], facts[MESSAGE_BYTES])


@lru_cache(maxsize=4)
def _connected(address: str, token: str, certificate: str, message_bytes: int) -> grpc.Channel:
    """Return one channel per process and server: a node's clients share it."""
    return connect(address, token, certificate.encode() or None, Limits(message_bytes=message_bytes))

"""The averaging strategy: a server model per client, averaged layer by layer (Hetero-SplitEE, Oda et al.)."""

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.storage.client_store import ClientState, ClientStore
from common.weights.flat import StateDict
from common.weights.layers import LayerMean
from strategies.hetero_splitee.learner import (
    MOMENTUM,
    Learner,
    Sgd,
    StepResult,
    final_logits,
    server_part,
    statistics,
    train_step,
)
from strategies.hetero_splitee.prior import LabelCounts, adjusted, counts_of
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import RunningStatistics, statistics_of
from strategies.hetero_splitee.vectorised import train_together

DEVICE = "device."  # in the store, the prefix of the keys of a device's layers


@dataclass(frozen=True)
class Kept:
    """The store's entry of a client."""

    round: int  # the client's last round
    cut: int
    samples: int  # n_i


class Averaging:
    """A copy of the layers after its cut for every client, each with its own momentum.

    1. The copies of a round's clients are read, trained on their own client's batches alone, and written back. No other
       copies are in memory.
    2. Every `period` rounds, each layer is averaged over all copies that hold it and were trained since the last
       average, weighted by their clients' samples. All clients continue from the average; each keeps its own momentum.
       With scope "global" each layer is averaged over all clients, on whichever side they hold it, and a device's exit
       over the clients of its cut (DTFL).

    Batch norm's running statistics follow `splitee.statistics`: a client keeps its own, or continues from the mean of
    its cut's copies, or from the mean of all. A new client has its cut's, else the average's.

    A new client starts from the last average, at first from the seed's weights. A client whose cut has changed keeps
    the layers that its copy had; the others come from the last average.
    """

    def __init__(
        self, network: EarlyExitNetwork, settings: SplitEESettings, device: torch.device, store: ClientStore
    ) -> None:
        """Start from the weights of the whole network; no other component may use the store."""
        self.network, self.settings, self.device, self.store = network, settings, device, store
        last = f"exits.{network.end}."
        self.average: StateDict = {
            key: value.cpu().clone() for key, value in network.state_dict().items() if key.startswith(("units.", last))
        }
        self.averaged = 0  # round
        self.running = RunningStatistics(settings.statistics)
        self.counts = LabelCounts(network.num_classes if settings.prior == "own" else 0)
        self._buffers = statistics(network).keys()
        self.kept: dict[int, Kept] = {}
        self.copies: dict[int, Learner] = {}  # of this round's clients
        self._guest: tuple[tuple[int, int], Learner] | None = None  # the last copy evaluated outside its rounds
        self._vectorises = settings.vectorise == "always" or (settings.vectorise == "auto" and device.type == "cuda")

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd, epochs: int = 1) -> None:
        """Begin a round: read the copies of these clients for these cuts."""
        self.round, self.sgd, self._guest = round_, sgd, None
        self.counts.open_round(epochs)
        self.copies = {client: self._read(client, cuts[client]) for client in sorted(cuts)}

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train a client's copy on one batch: features (B, ...) at its cut, labels (B,)."""
        copy = self.copies[client]
        return train_step(
            copy, copy.network, 0, self.sgd,
            features.to(self.device), labels.to(self.device), return_gradient=self.settings.gradient == "return",
            prior=self.counts.count(client, labels),
        )  # fmt: skip

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client; copies of the same cut together where that is faster."""
        if not self._vectorises:
            return {client: self.step(client, *batches[client]) for client in sorted(batches)}
        groups: dict[tuple[int, torch.Size], list[int]] = {}
        for client in sorted(batches):
            groups.setdefault((self.copies[client].network.start, batches[client][0].shape), []).append(client)
        results: dict[int, StepResult] = {}
        for clients in groups.values():
            if len(clients) == 1:
                results[clients[0]] = self.step(clients[0], *batches[clients[0]])
                continue
            features, labels = (torch.stack(column) for column in zip(*(batches[c] for c in clients), strict=True))
            priors = [prior for c in clients if (prior := self.counts.count(c, batches[c][1])) is not None]
            together = train_together(
                [self.copies[client] for client in clients], self.sgd,
                features.to(self.device), labels.to(self.device), return_gradient=self.settings.gradient == "return",
                priors=torch.stack(priors).to(self.device) if priors else None,
            )  # fmt: skip
            results |= dict(zip(clients, together, strict=True))
        return dict(sorted(results.items()))

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> None:
        """End the round: average if it is due, and write the copies.

        Args:
            samples: n_i of the clients whose training counts; that of the others is dropped.
            devices: with scope "global" the device parts of these clients by key, otherwise empty.
        """
        for client in sorted(samples):
            part = self.copies[client].network
            self.kept[client] = Kept(self.round, part.start, samples[client])
            self.running.keep(client, part.start, statistics(part))
        if self.settings.aggregates(self.round):
            self._aggregate(devices)
        for client in sorted(samples):
            # right after averaging, the weights equal the average and need not be stored
            own = self._own(client, devices) if self.round > self.averaged else {}
            momenta = {MOMENTUM + key: value for key, value in self.copies[client].momenta().items()}
            self.store.save(client, self.round, ClientState({**own, **momenta}))
        self.copies, self._guest = {}, None

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) from a client's copy for this cut, in eval mode.

        They are adjusted to the client.
        """
        copy = self.copies.get(client)
        if copy is None or copy.network.start != cut:
            if self._guest is None or self._guest[0] != (client, cut):
                # no pruning: a round is evaluated before its checkpoint is written
                self._guest = (client, cut), self._read(client, cut, prune=False)
            copy = self._guest[1]
        return adjusted(final_logits(copy.network, features.to(self.device)), self.counts.prior(client))

    def model(self) -> StateDict:
        """Return a copy of the last average by key: all units, the last exit, with scope "global" those at cuts."""
        return {key: value.clone() for key, value in self.average.items()}

    def statistics(self) -> RunningStatistics:
        """Return the running statistics beside the average's, as of the last finished round."""
        return self.running

    def labels(self) -> LabelCounts:
        """Return the labels that each client has streamed."""
        return self.counts

    def held_bytes(self) -> int:
        """Return the bytes of the average, of the copies in memory with their momenta, of statistics and counts."""
        states = [self.average, *(copy.state_dict() for copy in self.copies.values())]
        models = sum(value.nbytes for state in states for value in state.values())
        return models + self.running.nbytes() + self.counts.nbytes()

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint; the copies are in the store."""
        return self.counts.beside(self.running.beside(self.model())), {
            "averaged": self.averaged,
            "kept": [[client, *astuple(kept)] for client, kept in sorted(self.kept.items())],
        }

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.running = statistics_of(tensors, self.settings.statistics)
        self.counts = counts_of(tensors, self.counts.classes)
        self.average = {key: value for key, value in tensors.items() if key.startswith(("units.", "exits."))}
        self.averaged = int(values["averaged"])
        self.kept = {client: Kept(*rest) for client, *rest in values["kept"]}
        self.copies, self._guest = {}, None

    def _aggregate(self, devices: Mapping[int, StateDict]) -> None:
        mean, sets = LayerMean(), list[tuple[int, float, StateDict]]()
        for client, kept in sorted(self.kept.items()):
            if kept.round > self.averaged:
                model = self._own(client, devices) if kept.round == self.round else self._stored(client)
                # a device's exit has its cut in its key
                mean.add({key.removeprefix(DEVICE): value for key, value in model.items()}, kept.samples)
                sets.append((kept.cut, kept.samples, {k: v for k, v in model.items() if k in self._buffers}))
        self.running.average(sets)
        self.average |= mean.result()
        self.averaged = self.round

    def _own(self, client: int, devices: Mapping[int, StateDict]) -> StateDict:
        """Return a client's averaged layers: its copy and, with scope "global", its device's units and exit."""
        copy = self.copies[client].network
        own = {key: value.detach().cpu() for key, value in copy.state_dict().items()}
        if self.settings.scope == "global":
            units = {key: value for key, value in devices[client].items() if key.startswith("units.")}
            if {int(key.split(".")[1]) for key in units} != set(range(copy.start)):
                raise ValueError(f"client {client}: its device's layers are not those before its cut {copy.start}")
            own |= {DEVICE + key: value.cpu() for key, value in devices[client].items()}
        return own

    def _stored(self, client: int) -> StateDict:
        state = self.store.load(client, self.kept[client].round)
        return {key: value for key, value in state.tensors.items() if not key.startswith(MOMENTUM)}

    def _read(self, client: int, cut: int, *, prune: bool = True) -> Learner:
        """Return a client's copy for this cut: its stored layers, else its statistics and the average."""
        kept = self.kept.get(client)
        state = self.store.load(client, kept.round if kept else 0, prune=prune).tensors
        if kept and kept.round <= self.averaged:  # the average is newer
            state = {key: value for key, value in state.items() if key.startswith(MOMENTUM)}
        copy = Learner.copy_of(server_part(self.network, cut), self.device)
        copy.load_state_dict(self.average | self.running.of(client, cut) | state)
        return copy

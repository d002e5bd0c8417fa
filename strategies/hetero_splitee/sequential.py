"""The sequential strategy: one server model, clients served one after another (Hetero-SplitEE, Oda et al.)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.weights.flat import StateDict
from strategies.hetero_splitee.learner import (
    Learner,
    Sgd,
    StepResult,
    final_logits,
    server_part,
    statistics,
    train_step,
    with_statistics,
)
from strategies.hetero_splitee.prior import LabelCounts, adjusted, counts_of
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import RunningStatistics, statistics_of


class Sequential:
    """One model of all layers that any cut leaves to the server, and one momentum.

    A batch from cut l trains the layers after l alone: shallower layers keep their weights and momentum, including
    those that other clients' batches trained before. Parts for different cuts, or clients, share the parameters but not
    batch norm's running statistics (`splitee.statistics`). A new client starts with its cut's, a new cut with the
    initial ones. Steps use a batch's own statistics, so running statistics never affect the weights.
    """

    def __init__(self, network: EarlyExitNetwork, settings: SplitEESettings, device: torch.device) -> None:
        """Start from the weights of the whole network."""
        self.settings, self.device = settings, device
        self.learner = Learner.copy_of(server_part(network, 1), device)
        self.running = RunningStatistics(settings.statistics)
        self.counts = LabelCounts(network.num_classes if settings.prior == "own" else 0)
        self.parts: dict[int, tuple[EarlyExitNetwork, int]] = {}  # of this round's clients -> part, start in vectors
        self.cuts: dict[int, int] = {}  # of this round's clients
        self._guest: tuple[tuple[int, int], EarlyExitNetwork] | None = None  # the last part evaluated between rounds

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd, epochs: int = 1) -> None:
        """Begin a round with these clients' cuts."""
        self.cuts, self.sgd, self.parts, self._guest = dict(cuts), sgd, {}, None
        self.counts.open_round(epochs)

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train on one batch: features (B, ...) at the client's cut, labels (B,)."""
        part, start = self._part(client)
        return train_step(
            self.learner, part, start, self.sgd,
            features.to(self.device), labels.to(self.device), return_gradient=self.settings.gradient == "return",
            prior=self.counts.count(client, labels),
        )  # fmt: skip

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client, in the order that is given."""
        return {client: self.step(client, *batch) for client, batch in batches.items()}

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> None:
        """End the round: take over its running statistics. The model is not averaged, and no copy is stored."""
        found = {client: statistics(self.parts[client][0]) for client in sorted(samples) if client in self.parts}
        for client, state in found.items():
            self.running.keep(client, self.cuts[client], state)
        self.running.average((self.cuts[client], samples[client], state) for client, state in found.items())
        self.cuts, self.parts, self._guest = {}, {}, None

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) at a cut, in eval mode, adjusted to the client."""
        if self.cuts.get(client) == cut:
            part, _ = self._part(client)
        else:
            part = self._as_guest(client, cut)
        return adjusted(final_logits(part, features.to(self.device)), self.counts.prior(client))

    def model(self) -> StateDict:
        """Return a copy of the server's layers by key; a layer's statistics are those of the shallowest cut before it.

        A cut that has never trained uses them, too.
        """
        state = {key: value.detach().cpu() for key, value in self.learner.network.state_dict().items()}
        return {key: value.clone() for key, value in (state | self.running.shallowest()).items()}

    def statistics(self) -> RunningStatistics:
        """Return the running statistics beside `model`'s, as of the last finished round."""
        return self.running

    def labels(self) -> LabelCounts:
        """Return the labels that each client has streamed."""
        return self.counts

    def held_bytes(self) -> int:
        """Return the bytes of the model's weights and momentum, of all running statistics and of the label counts."""
        parts = {id(part): part for part, _ in self.parts.values() if self.settings.statistics != "shared"}
        live = sum(value.nbytes for part in parts.values() for value in statistics(part).values())
        model = sum(value.nbytes for value in self.learner.state_dict().values())
        return model + self.running.nbytes() + live + self.counts.nbytes()

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint, between rounds."""
        model = {key: value.cpu().clone() for key, value in self.learner.state_dict().items()}
        return self.counts.beside(self.running.beside(model)), {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.learner.load_state_dict(tensors)
        self.running = statistics_of(tensors, self.settings.statistics)
        self.counts = counts_of(tensors, self.counts.classes)
        self.cuts, self.parts, self._guest = {}, {}, None

    def _as_guest(self, client: int, cut: int) -> EarlyExitNetwork:
        """Return the layers after a cut for a client that does not train there in this round."""
        if self._guest is None or self._guest[0] != (client, cut):
            part = server_part(self.learner.network, cut)
            self._guest = (client, cut), with_statistics(part, self.running.shallowest() | self.running.of(client, cut))
        return self._guest[1]

    def _part(self, client: int) -> tuple[EarlyExitNetwork, int]:
        """Return a client's layers in this round and their start in the vectors."""
        if client not in self.parts:
            cut = self.cuts[client]
            alike = [c for c in self.parts if self.cuts[c] == cut] if self.settings.statistics != "own" else []
            self.parts[client] = self.parts[alike[0]] if alike else self._new(client, cut)
        return self.parts[client]

    def _new(self, client: int, cut: int) -> tuple[EarlyExitNetwork, int]:
        part = server_part(self.learner.network, cut)
        if self.settings.statistics != "shared":
            part = with_statistics(part, self.running.of(client, cut))
        return part, self.learner.offset(cut)

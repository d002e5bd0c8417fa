"""The sequential strategy: one server model, clients served one after another (Hetero-SplitEE, Oda et al.)."""

import copy
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
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import statistics_by_cut, with_cuts


class Sequential:
    """One model of all layers that any cut leaves to the server, and one momentum.

    A batch from cut l trains the layers after l alone: shallower layers keep their weights and momentum, including
    those that other clients' batches trained before. Parts for different cuts share the parameters but not batch norm's
    running statistics, because features differ between depths; each cut starts with the initial ones. Steps use a
    batch's own statistics, so running statistics never affect the weights.
    """

    def __init__(self, network: EarlyExitNetwork, settings: SplitEESettings, device: torch.device) -> None:
        """Start from the weights of the whole network."""
        self.settings, self.device = settings, device
        self.learner = Learner.copy_of(server_part(network, 1), device)
        self.parts: dict[
            int, tuple[EarlyExitNetwork, int]
        ] = {}  # cuts that trained -> part, start in learner's vectors
        self.cuts: dict[int, int] = {}

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd) -> None:
        """Begin a round with these clients' cuts."""
        self.cuts, self.sgd = dict(cuts), sgd

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train on one batch: features (B, ...) at the client's cut, labels (B,)."""
        part, start = self._part(self.cuts[client])
        return train_step(
            self.learner, part, start, self.sgd,
            features.to(self.device), labels.to(self.device), return_gradient=self.settings.gradient == "return",
        )  # fmt: skip

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client, in client order."""
        return {client: self.step(client, *batches[client]) for client in sorted(batches)}

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> tuple[int, ...]:
        """End the round. The model is not averaged, and no copy is stored."""
        self.cuts = {}
        return ()

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) at a cut, in eval mode."""
        part = self.parts[cut][0] if cut in self.parts else server_part(self._whole(), cut)
        return final_logits(part, features.to(self.device))

    def model(self) -> StateDict:
        """Return a copy of the server's layers by key; a layer's statistics are those of the shallowest cut before it.

        A cut that has never trained uses them, too.
        """
        state = {key: value.detach().cpu().clone() for key, value in self.learner.network.state_dict().items()}
        for _, own in sorted(self.statistics().items(), reverse=True):
            state |= own
        return state

    def statistics(self) -> dict[int, StateDict]:
        """Return a copy of the running statistics of each cut that trained; empty if all cuts share one set."""
        if self.settings.statistics == "shared":
            return {}
        return {
            cut: {key: value.cpu().clone() for key, value in statistics(part).items()}
            for cut, (part, _) in sorted(self.parts.items())
        }

    def held_bytes(self) -> int:
        """Return the bytes of the model's weights, statistics and momentum."""
        return sum(value.nbytes for value in self.state_dict()[0].values())

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint."""
        learner = {key: value.cpu().clone() for key, value in self.learner.state_dict().items()}
        return with_cuts(learner, self.statistics()), {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        self.learner.load_state_dict(tensors)
        self.parts = {}
        for cut, own in statistics_by_cut(tensors).items():
            self._part(cut, own)

    def _part(self, cut: int, initial: StateDict | None = None) -> tuple[EarlyExitNetwork, int]:
        """Return the layers after a cut and their start in the vectors; new ones start with `initial` statistics."""
        if cut not in self.parts:
            part = server_part(self.learner.network, cut)
            own = part if self.settings.statistics == "shared" else with_statistics(part, initial)
            self.parts[cut] = own, self.learner.offset(cut)
        return self.parts[cut]

    def _whole(self) -> EarlyExitNetwork:
        network = copy.deepcopy(self.learner.network)
        network.load_state_dict(self.model())
        return network

"""The sequential strategy: one server model, clients served one after another (Hetero-SplitEE, Oda et al.)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from common.flat import StateDict
from common.networks import EarlyExitNetwork
from strategies.hetero_splitee.config import SplitEEConfig
from strategies.hetero_splitee.learner import Learner, Sgd, StepResult, final_logits, server_part, train_step


class Sequential:
    """One model of all layers that any cut leaves to the server, and one momentum.

    A batch from cut l trains the layers after l alone: shallower layers keep weights and momentum as they are, also
    those that other clients' batches trained before. Parts for different cuts share the parameters.
    """

    def __init__(self, network: EarlyExitNetwork, config: SplitEEConfig, device: torch.device) -> None:
        """Start from the whole network's weights."""
        self.config, self.device = config, device
        self.learner = Learner.copy_of(server_part(network, 1), device)
        self.parts: dict[int, tuple[EarlyExitNetwork, int]] = {}  # by cut; and where it begins in the learner's vectors
        self.cuts: dict[int, int] = {}

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd) -> None:
        """Begin a round with these clients' cuts."""
        self.cuts, self.sgd = dict(cuts), sgd

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train on one batch: features (B, ...) at the client's cut, labels (B,)."""
        part, start = self._part(self.cuts[client])
        return train_step(
            self.learner, part, start, self.sgd,
            features.to(self.device), labels.to(self.device), wanted=self.config.gradient == "return",
        )  # fmt: skip

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client, in client order."""
        return {client: self.step(client, *batches[client]) for client in sorted(batches)}

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> tuple[int, ...]:
        """End the round. Nothing is averaged, nothing is kept per client."""
        self.cuts = {}
        return ()

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) at a cut, in eval mode."""
        return final_logits(self._part(cut)[0], features.to(self.device))

    def model(self) -> StateDict:
        """Return a copy of the server's layers by key."""
        return {key: value.detach().cpu().clone() for key, value in self.learner.network.state_dict().items()}

    def held_bytes(self) -> int:
        """Return the bytes of the model's weights, statistics and momentum."""
        return sum(value.nbytes for value in self.learner.state_dict().values())

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint."""
        return {key: value.cpu().clone() for key, value in self.learner.state_dict().items()}, {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        self.learner.load_state_dict(tensors)

    def _part(self, cut: int) -> tuple[EarlyExitNetwork, int]:
        if cut not in self.parts:
            self.parts[cut] = server_part(self.learner.network, cut), self.learner.offset(cut)
        return self.parts[cut]

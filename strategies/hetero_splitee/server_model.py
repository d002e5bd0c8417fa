"""What the server's two strategies have in common."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.storage.client_store import ClientStore
from common.weights.flat import StateDict
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import Sgd, StepResult
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.settings import SplitEESettings


class ServerModel(Protocol):
    """The layers after the clients' cuts; one thread trains them, a batch at a time."""

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd) -> None:
        """Begin a round, counted from 1, with these clients' cuts."""
        ...

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train on one client's batch: features (B, ...) at its cut, labels (B,) int64."""
        ...

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client; the results are in client order."""
        ...

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> tuple[int, ...]:
        """End the round for the clients that finished, given with their n_i; return those of whom a copy was stored.

        `devices` are these clients' device parts by key where the scope is "global", else nothing.
        """
        ...

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) in eval mode, during a round or after it."""
        ...

    def model(self) -> StateDict:
        """Return a copy of the server's view of the network by key, all layers from the second unit on at least."""
        ...

    def statistics(self) -> dict[int, StateDict]:
        """Return a copy of the running statistics by cut, where cuts have their own beside `model`'s."""
        ...

    def held_bytes(self) -> int:
        """Return the bytes of all weights, statistics and momenta in memory, which are most during a round."""
        ...

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint."""
        ...

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        ...


def make_server_model(
    network: EarlyExitNetwork, settings: SplitEESettings, device: torch.device, store: ClientStore
) -> ServerModel:
    """Return the configured strategy's model, which starts from the network's weights; only "averaging" stores."""
    if settings.mode == "sequential":
        return Sequential(network, settings, device)
    return Averaging(network, settings, device, store)

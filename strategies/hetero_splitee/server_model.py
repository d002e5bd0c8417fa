"""The interface of the server's two strategies."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.storage.client_store import ClientStore
from common.weights.flat import StateDict
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import Sgd, StepResult
from strategies.hetero_splitee.prior import LabelCounts
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import RunningStatistics


class ServerModel(Protocol):
    """The layers after the clients' cuts; one thread trains them, a batch at a time."""

    def open_round(self, round_: int, cuts: Mapping[int, int], sgd: Sgd, epochs: int = 1) -> None:
        """Begin a round, counted from 1, with these clients' cuts and so many local epochs."""
        ...

    def step(self, client: int, features: Tensor, labels: Tensor) -> StepResult:
        """Train on one client's batch: features (B, ...) at its cut, labels (B,) int64."""
        ...

    def step_many(self, batches: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, StepResult]:
        """Train on one batch (features, labels) per client; the order of a sequential model's clients matters."""
        ...

    def close_round(self, samples: Mapping[int, int], devices: Mapping[int, StateDict]) -> None:
        """End the round.

        `samples` are the n_i of the clients whose training counts, be it cut short. `devices` are these clients' device
        parts by key with scope "global", otherwise empty. Afterwards the caller closes `labels()`'s round.
        """
        ...

    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the final logits (B, classes) of features (B, ...) in eval mode, during a round or after it.

        With a prior they are adjusted by the client's, if it has finished a round.
        """
        ...

    def model(self) -> StateDict:
        """Return a copy of the server's layers by key, at least all from the second unit on."""
        ...

    def statistics(self) -> RunningStatistics:
        """Return the running statistics of clients and cuts that have their own beside `model`'s, between rounds."""
        ...

    def labels(self) -> LabelCounts:
        """Return the labels that each client has streamed; with the setting "none" they are not counted."""
        ...

    def held_bytes(self) -> int:
        """Return the bytes of all weights, statistics and momenta in memory, which peak during a round."""
        ...

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values for a checkpoint."""
        ...

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
        ...


def make_server_model(
    network: EarlyExitNetwork, settings: SplitEESettings, device: torch.device, store: ClientStore
) -> ServerModel:
    """Return the configured strategy's model with the network's weights; only "averaging" writes to the store."""
    if settings.mode == "sequential":
        return Sequential(network, settings, device)
    return Averaging(network, settings, device, store)

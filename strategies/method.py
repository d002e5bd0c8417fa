"""The contract between a method and the frame. A method's author reads this page and one example.

A method is a card (`Method`) with two halves:

- the server half overrides hooks of `ServerMethod`; it inherits `EarlyExitStrategy` (engine/strategy.py), the rest;
- the client half is a `LocalMethod`; mostly it inherits `LocalTraining` (node/local_training.py).

In every round the server samples clients and calls `prepare`; every client gets the weights of its part, trains
(`LocalMethod.steps`) and answers with an `Outcome`; the server averages the clients of each part and calls `merge`.
A `part` is a number: a depth tier, a cut or a student, as the card's `parts` has it.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from common.capacity import TRAINING_MACS
from common.config import RunConfig
from common.data.clients import ClientData
from common.data.images import Normalizer, SampleSet
from common.data.summary import DataSummary
from common.exits import ThresholdPolicy
from common.messages.protocol import ClientArrays, ClientReport, ClientResult, PackedState
from common.networks import EarlyExitNetwork
from common.settings import Settings
from common.storage.client_store import ClientState
from common.storage.model_file import FILE, ModelInfo, save_model
from common.weights.flat import FlatModel, FlatState, Layout, StateDict
from common.weights.layers import average_layers
from strategies.parts import TIERS, AnyParts, Division, Spec

# --- The card


def everything(config: RunConfig, key: str) -> bool:
    """Every key of the model travels."""
    return True


@dataclass(frozen=True)
class Method:
    """All that the frame needs to know of a method. Its module exports one as `METHOD`."""

    name: str  # as in `run.strategy`
    strategy: Callable[["Method", "Setup"], "ServerMethod"]  # the server half: a subclass of EarlyExitStrategy
    local: Callable[[], "LocalMethod"]  # the client half, one per message
    settings: tuple[type[Settings], ...] = ()  # the sections of the configuration that it reads
    parts: AnyParts = TIERS  # what of the network a device trains
    travels: Callable[[RunConfig, str], bool] = everything  # which keys of the model are sent and averaged
    apart: Callable[[RunConfig], bool] = lambda config: False  # True: `merge` needs every client's model by itself
    # The network's boosting coefficient; 0.0 for a method with a loss of its own, to which `objective` does not apply
    ensemble: Callable[[RunConfig], float] = lambda config: config.objective.ensemble
    recurrent: Callable[[RunConfig], int] = lambda config: 0  # width of the tokens of recurrent exits; 0: none
    measure: str = "softmax"  # confidence by which a client's samples leave early, see `common.exits.confidence`
    exits: bool = True  # False: the network has its last exit only; devices get exits at their cuts
    nested: bool = True  # a part's weights hold the weights of all smaller parts
    personal: bool = False  # clients end with networks of their own and evaluate them
    robust: bool = True  # False: clients teach by more than averaged models, so robust aggregation cannot guard it
    interleaved: bool = False  # a node's clients train in turn, step by step, instead of one after another


# --- The client half


@dataclass
class Job:
    """One client's work in one round. The model already holds the weights to start from."""

    client: int
    part: int
    round: int
    config: RunConfig
    model: FlatModel[EarlyExitNetwork]  # DistrEE's is its `Students`
    device: torch.device
    data: Callable[[], ClientData]  # loaded when it is first called
    round_values: Mapping[str, Any] = field(default_factory=dict)  # `ServerMethod.round_values`, and "lr"
    client_values: Mapping[str, Any] = field(default_factory=dict)  # `ServerMethod.client_values`
    client_arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # `ServerMethod.client_arrays`
    kept: ClientState = field(default_factory=ClientState)  # what this client kept in its last committed round
    travels: Callable[[str], bool] = lambda key: True  # which keys of the model the server averages
    initial: Callable[[], StateDict] = dict  # the model as the run's seed makes it
    states: Mapping[str, FlatState] = field(default_factory=dict)  # all states of the message, by name

    @property
    def network(self) -> EarlyExitNetwork:
        """The model as a network."""
        return self.model.module

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
        """Normalised training samples (N, ...), on the device."""
        return self.data().x

    @cached_property
    def y(self) -> Tensor:
        """Their labels (N,), int64."""
        return self.data().y


@dataclass
class Outcome:
    """What a job gave."""

    state: FlatState | None  # the trained weights that travel; None if the method sends none
    metrics: dict[str, float] = field(default_factory=dict)  # averaged over clients, weighted by samples
    client_arrays: dict[str, np.ndarray] = field(default_factory=dict)  # for the server's `merge`, see RoundUpdate
    kept: ClientState | None = None  # what the client keeps until its next round; None: nothing new


class LocalMethod(Protocol):
    """The client half."""

    def load(self, job: Job, state: FlatState) -> None:
        """Put the weights to start from into the job's model; `state` is what the server sent."""
        ...

    def steps(self, job: Job) -> Generator[None, None, Outcome]:
        """Train one client for one round; at every `yield` the node may go on with another client."""
        ...

    def personalise(self, job: Job) -> None:
        """Turn the loaded model into the one that this client would use, before it is evaluated or delivered."""
        ...

    def network(self, job: Job) -> nn.Module:
        """Return the network that this client evaluates: logits (B, classes) per exit."""
        ...

    def store(self, job: Job, folder: Path, info: ModelInfo) -> None:
        """Write the personalised model for inference without a server."""
        ...


# --- The server half


@dataclass(frozen=True)
class Effort:
    """What a client's round costs its device beside the model's way there and back; see `engine/clock.py`."""

    macs: float  # multiply-accumulates of all passes
    up: float = 0  # bytes that the client sends beside its model, streamed ones too
    down: float = 0  # bytes that it gets beside its model, `client_arrays` and `shared_states`
    exchanges: int = 1  # messages and answers that wait for each other: each costs the link's latency


class Evaluator(Protocol):
    """Measures the global network on the server's samples."""

    policy: ThresholdPolicy | None  # the fitted thresholds, after an evaluation with `exit_macs`
    validation: SampleSet  # the server's validation samples, possibly none
    test: SampleSet  # the server's test samples

    def evaluate(self, network: nn.Module, exit_macs: Sequence[float] = ()) -> dict[str, Any]:
        """Return accuracies in [0, 1] per exit; given each exit's MACs, fit `policy` and add the cost curve."""
        ...


@dataclass(frozen=True)
class Setup:
    """What a strategy is made of; `strategies.factory` makes it from a configuration."""

    config: RunConfig
    spec: Spec  # of the whole network
    classes: tuple[str, ...]  # class names; devices that bring their own folders need them
    normalizer: Normalizer
    data: DataSummary  # what was read
    evaluator: Evaluator | None = None  # None: only clients evaluate


@dataclass(frozen=True)
class TierUpdate:
    """The clients of one part in a round, averaged: W_k, n_k and the clients."""

    state: StateDict  # all keys of the part's layout: float32 weights and statistics, int64 counters (their maxima)
    weight: int  # training samples
    clients: tuple[int, ...]


@dataclass
class RoundUpdate:
    """What a round brought. All maps by client are in client order, whatever the order of arrival."""

    tiers: dict[int, TierUpdate] = field(default_factory=dict)  # by part, of parts that had replies
    results: dict[int, ClientResult] = field(default_factory=dict)  # by client, of clients that succeeded
    failures: dict[int, str] = field(default_factory=dict)  # client -> reason
    rejected: set[int] = field(default_factory=set)  # of the failures, clients whose answer came but is unfit
    late: dict[int, tuple[int, ClientResult]] = field(default_factory=dict)  # client -> (round it was asked in, result)
    client_arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # by client: `Outcome.client_arrays`
    states: dict[int, FlatState] = field(default_factory=dict)  # by client, if the card has `apart`

    def mean_metrics(self) -> dict[str, float]:
        """Average the clients' metrics, weighted by samples, in client order."""
        sums: dict[str, float] = {}
        weights: dict[str, int] = {}
        for result in self.results.values():
            for key, value in result.metrics.items():
                sums[key] = sums.get(key, 0.0) + value * result.num_examples
                weights[key] = weights.get(key, 0) + result.num_examples
        return {key: sums[key] / weights[key] for key in sorted(sums)}


class ServerMethod:
    """The server half: the hooks of a method, in the order in which the frame calls them. All have defaults.

    State of its own is made in `__init__(self, method: Method, setup: Setup)`, after `super().__init__(method, setup)`;
    there a configuration that the method cannot run is refused with a `UserError`. `part` and `eligible` are called
    several times a round, so they must give the same answer each time.
    """

    # What the frame has set before any hook is called
    method: Method
    config: RunConfig
    device: torch.device  # where the server computes
    parts: Division
    tiers: tuple[int, ...]  # the parts that devices may hold, from the smallest to the largest
    network: EarlyExitNetwork  # the whole; `model` holds its weights between rounds. DistrEE's is its `Students`
    model: StateDict  # the global model, on the CPU: parameters, frozen ones too, and BatchNorm's statistics
    layouts: dict[int, Layout]  # part -> keys and shapes that are sent to its clients
    uploads: dict[int, Layout]  # part -> keys and shapes that come back: frozen weights do not
    spec: Spec
    classes: tuple[str, ...]
    normalizer: Normalizer
    data: DataSummary  # what was read
    evaluator: Evaluator | None
    committed: dict[int, int]  # client -> round of its last committed state
    asked: dict[int, ClientReport]  # this round's clients

    def serving(self) -> AbstractContextManager[None]:
        """Return a context that is open while `start` runs, such as a service of the method's own."""
        return nullcontext()

    def eligible(self, client: ClientReport) -> bool:
        """Return whether the method trains this client at all."""
        return True

    def part(self, client: ClientReport) -> int:
        """Return the part to train, never larger than declared."""
        return client.part

    def prepare(self, round_: int, clients: Sequence[ClientReport]) -> None:
        """Get ready for a round with these clients, before anything is packed."""

    def round_values(self, round_: int) -> Mapping[str, Any]:
        """Return plain values (JSON) that all clients get this round."""
        return {}

    def client_values(self, client: ClientReport) -> Mapping[str, Any]:
        """Return plain values (JSON) that this client gets for itself."""
        return {}

    def client_arrays(self, clients: Sequence[ClientReport]) -> ClientArrays:
        """Return arrays, by client and name, that each of these clients gets for itself beside its weights."""
        return {}

    def shared_states(self, clients: Sequence[ClientReport]) -> Mapping[str, PackedState]:
        """Return states by name that these clients, all of one node, get beside their weights."""
        return {}

    def part_state(self, part: int) -> FlatState:
        """Return the weights that are sent to clients of this part."""
        return FlatState.of({key: self.model[key] for key in self.layouts[part].keys})

    def client_array_bytes(self, client: ClientReport) -> int:
        """Return the size in bytes of the arrays that this client may send beside its model, at most."""
        return 0

    def effort(self, client: ClientReport) -> Effort:
        """Return what the round that is being prepared costs this client's device, for the simulated clock.

        The default is `train.epochs` of training of its part and one message each way. A method whose clients train
        anything else says so here.
        """
        macs = TRAINING_MACS * self.parts.macs(self.part(client)) * client.num_examples * self.config.train.epochs
        return Effort(macs, up=self.client_array_bytes(client))

    def lost(self, client: int) -> None:
        """React to the failure of a client of this round, while others still train or after all answers.

        It may be called more than once for a client.
        """

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Turn the round's averages into the next global model; return plain values for the metrics.

        The default is federated averaging, layer by layer over the parts that hold a layer (EEFL). `round.staleness`
        folds late answers into averages, so it is refused for a method that overrides this hook.
        """
        weights = {part: float(tier.weight) for part, tier in update.tiers.items()}
        self.model |= average_layers(self.averages(update), weights)
        return {}

    def averages(self, update: RoundUpdate) -> dict[int, StateDict]:
        """Return each part's average as it goes into the average over parts; by default as the clients made it."""
        return {part: tier.state for part, tier in update.tiers.items()}

    def whole_macs(self) -> list[float]:
        """Return the MACs of a sample that leaves at each exit of the whole network."""
        return self.parts.exit_macs(self.tiers[-1])

    def evaluate(self, *, final: bool = False) -> Mapping[str, Any]:
        """Measure the global network on the server's samples; `final` also fits the exit policy."""
        if self.evaluator is None:
            return {}
        self.network.load_state_dict(self.model)
        return self.evaluator.evaluate(self.network, self.whole_macs() if final else ())

    def finish(self) -> None:
        """Make, after the last round, what goes out with the finished model: here the exit policy, if it is missing."""
        if self.evaluator and self.evaluator.policy is None:  # the run was killed after its last round, then resumed
            self.evaluate(final=True)

    def final_model(self) -> StateDict:
        """Return the finished model for the run's folder; nothing if the clients have it."""
        return {} if self.method.personal else self.model

    def final_values(self) -> Mapping[str, Any]:
        """Return plain values (JSON) that are stored with the finished model."""
        return {}

    def save_final(self, folder: Path) -> None:
        """Write what the run leaves behind for inference into its folder."""
        if not (model := self.final_model()):
            return
        policy = self.evaluator.policy if self.evaluator else None
        info = ModelInfo(
            self.spec.to_json(), len(self.network.tier_positions), self.classes, self.normalizer.mean,
            self.normalizer.std, policy.to_json() if policy else "", run=self.config.run.name,
            values=self.final_values(),
        )  # fmt: skip
        save_model(folder / FILE, model, info)

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values (JSON) that a resumed run needs beyond the global model.

        It is called after every round. Tensors may be on any device, but no two may share memory; their names are the
        method's own.
        """
        return {}, {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; called only when a run is resumed after at least one round."""

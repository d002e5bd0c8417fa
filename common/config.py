"""The run's configuration: one schema, one error message that lists everything wrong.

Flower's run configuration is flat (`{"data.alpha": 0.5}`) and has str, int, float and bool only: a list is written as
a comma-separated string. A section is a frozen dataclass; every method brings its own section of hyper-parameters.
"""

import dataclasses
import json
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from common.data.config import DataConfig
from common.errors import UserError
from common.logs import FORMATS
from common.objectives import ObjectiveConfig
from common.settings import Settings, at_least, at_most, key, one_of

Value = str | int | float | bool
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class RunSection(Settings):
    """What is run, and where it is kept."""

    SECTION = "run"

    name: str = ""  # empty: made from the strategy and the time
    strategy: str = "darkdistill"
    seed: int = 1
    rounds: int = 10
    root: str = ""  # absolute folder that holds all runs; empty: `runs` beside Flower's home
    resume: str = ""  # a run's folder: continue it from its last complete round
    commit: str = ""  # filled in by the launcher: the installed bundle does not know it
    tensorboard: bool = False
    metrics_port: int = 0  # serve Prometheus metrics there; 0: do not
    metrics_host: str = "127.0.0.1"
    log_format: str = "text"  # "json": a JSON object per line, on the server and on the clients

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        bounds = at_least(self, rounds=1, seed=0, metrics_port=0) + at_most(self, metrics_port=65535)
        return bounds + one_of(self, log_format=FORMATS)


@dataclass(frozen=True)
class ClientsSection(Settings):
    """The virtual or real clients and how they are hosted."""

    SECTION = "clients"

    count: int = 20  # virtual clients of a simulation; real devices count themselves
    per_round: int = 8
    per_node: int = 0  # 0: any node may host any virtual client (simulation)
    mix: str = "equal"  # share of clients per depth tier such as "0.5,0.3,0.2", or "equal", "small", "large"
    device: str = "auto"
    threads: int = 1
    autocast: bool = False  # bf16
    store: str = ""  # folder for what clients keep; empty: beside the run
    state: str = "node"  # where what clients keep counts: on its "node", in a "shared" store, or with the "server"

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, count=1, per_round=1, per_node=0, threads=1)
        if self.per_round > self.count:
            found.append(f"clients.per-round is {self.per_round} but there are only {self.count} clients")
        if self.state == "shared" and not self.store:
            found.append("clients.state is shared: set clients.store to the folder that all machines share")
        return found + one_of(self, device=("auto", "cpu", "cuda"), state=("node", "shared", "server"))


@dataclass(frozen=True)
class TrainSection(Settings):
    """Local training; defaults of DarkDistill's experiments but for the schedule, which suits small runs."""

    SECTION = "train"

    epochs: int = 1
    batch_size: int = 32
    lr: float = 0.05
    lr_decay: float = 0.99  # per round
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        return at_least(self, epochs=0, batch_size=2, lr=0.0, lr_decay=0.0, momentum=0.0, weight_decay=0.0)


@dataclass(frozen=True)
class NetworkSection(Settings):
    """Which early-exit network, and where its exits and tiers are."""

    SECTION = "network"

    name: str = "resnet_slim"
    exits: tuple[int, ...] = ()
    tiers: tuple[int, ...] = ()
    width: int = 0
    lora_rank: int = 0
    pretrained: str = ""

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        return at_least(self, width=0, lora_rank=0)


@dataclass(frozen=True)
class RoundSection(Settings):
    """When a round is good enough, and when it is given up."""

    SECTION = "round"

    quorum: float = 0.5  # share of the sampled clients that must answer
    deadline: float = 3600.0  # seconds a client may take
    min_nodes: int = 1
    wait: float = 120.0  # seconds to wait for the first nodes
    staleness: float = 0.0  # weight of an answer per round that it is late; 0: it is dropped
    transport: str = "stream"  # of a deployment's orders and replies; "messages": Flower's alone

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, quorum=0.0, deadline=1.0, min_nodes=1, wait=0.0, staleness=0.0)
        found += at_most(self, quorum=1.0, staleness=1.0)
        return found + one_of(self, transport=("stream", "messages"))


@dataclass(frozen=True)
class ServerSection(Settings):
    """The server's own work: distillation and evaluation."""

    SECTION = "server"

    device: str = "auto"
    threads: int = 1
    autocast: bool = False  # bf16
    evaluate_every: int = 1  # rounds; 0: never on the server
    clients_evaluate_every: int = 0  # rounds; 0: clients never evaluate
    batch_size: int = 256
    accuracy_loss: float = 0.01  # allowed on validation data when exit thresholds are calibrated

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, threads=1, evaluate_every=0, clients_evaluate_every=0, batch_size=1, accuracy_loss=0.0)
        return found + one_of(self, device=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class RunConfig:
    """All sections: those that every run has, and those that its method reads."""

    run: RunSection = field(default_factory=RunSection)
    clients: ClientsSection = field(default_factory=ClientsSection)
    train: TrainSection = field(default_factory=TrainSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    round: RoundSection = field(default_factory=RoundSection)
    server: ServerSection = field(default_factory=ServerSection)
    settings: Mapping[type[Settings], Settings] = field(default_factory=dict)

    COMMON: ClassVar[tuple[type[Settings], ...]] = (
        RunSection, ClientsSection, TrainSection, NetworkSection, DataConfig, ObjectiveConfig, RoundSection,
        ServerSection,
    )  # fmt: skip

    def of(self, kind: type[S]) -> S:
        """Return the section of this kind; raises `LookupError` if it was not read: the method's card must list it."""
        if kind not in self.settings:
            raise LookupError(f"section {kind.SECTION!r} was not read: list {kind.__name__} on the method's card")
        return cast(S, self.settings[kind])

    def only(self, kinds: Iterable[type[Settings]]) -> "RunConfig":
        """Return the configuration without the sections that are not of these kinds."""
        return dataclasses.replace(self, settings={kind: self.settings[kind] for kind in kinds})

    def flat(self) -> dict[str, Value]:
        """Return Flower's flat form, the inverse of `load_config`."""
        sections: list[Settings] = [getattr(self, kind.SECTION) for kind in self.COMMON]
        return {
            key(section.SECTION, f.name): _plain(getattr(section, f.name))
            for section in (*sections, *self.settings.values())
            for f in fields(section)
        }

    def to_json(self) -> str:
        """Return the flat form as JSON: this is what travels to the clients."""
        return json.dumps(self.flat(), sort_keys=True)


def load_config(flat: Mapping[str, Value], kinds: Iterable[type[Settings]] = ()) -> RunConfig:
    """Read a flat configuration with sections of these kinds beside the common ones; absent keys keep their defaults.

    Raises `UserError` with every unknown key, wrong type and impossible value at once.
    """
    problems: list[str] = []
    kinds = tuple(kinds)
    known = {key(kind.SECTION, f.name) for kind in (*RunConfig.COMMON, *kinds) for f in fields(kind)}
    problems += [f"unknown key {k!r}" for k in sorted(set(flat) - known)]
    common = {kind.SECTION: _read(kind, flat, problems) for kind in RunConfig.COMMON}
    settings = {kind: _read(kind, flat, problems) for kind in kinds}
    if problems:
        raise UserError("the configuration has mistakes:\n  - " + "\n  - ".join(problems))
    return RunConfig(**common, settings=settings)  # type: ignore[arg-type]


def _read(kind: type[S], flat: Mapping[str, Value], problems: list[str]) -> S:
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for f in fields(kind):
        k = key(kind.SECTION, f.name)
        if k not in flat:
            continue
        try:
            values[f.name] = _convert(flat[k], hints[f.name])
        except (TypeError, ValueError) as error:
            problems.append(f"{k} = {flat[k]!r}: {error}")
    section = kind(**values)
    problems += section.problems()
    return section


def _convert(value: Value, hint: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        raise TypeError("unions are not supported in a section")
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"must be one of {', '.join(map(str, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(item(part) for part in str(value).split(",") if part.strip())
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:
        raise TypeError(f"must be {hint.__name__}, not {type(value).__name__}")
    return value


def _plain(value: Any) -> Value:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def replace(config: RunConfig, **changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy with fields of sections changed: `replace(config, run={"seed": 2})`."""
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **change) for name, change in changes.items()},
    )

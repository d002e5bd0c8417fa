"""The run's configuration: one schema, one error message that lists everything wrong.

Flower's run configuration is flat (`{"data.alpha": 0.5}`) and knows str, int, float and bool only: a list is written as
a comma-separated string. A section is a frozen dataclass; every method brings its own section of hyper-parameters.
"""

import dataclasses
import json
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from common.data.config import DataConfig
from common.errors import UserError
from common.logs import FORMATS
from common.objectives import ObjectiveConfig

Value = str | int | float | bool
S = TypeVar("S")


@dataclass(frozen=True)
class RunSection:
    """What is run, and where it is kept."""

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
        found = at_least(self, rounds=1, seed=0, metrics_port=0) + one_of(self, log_format=FORMATS)
        return found + (["run.metrics-port must be below 65536"] if self.metrics_port > 65535 else [])


@dataclass(frozen=True)
class ClientsSection:
    """The virtual or real clients and how they are hosted."""

    count: int = 20  # virtual clients of a simulation; real devices count themselves
    per_round: int = 8
    per_node: int = 0  # 0: any node may host any virtual client (simulation)
    mix: str = "equal"  # share of clients per depth tier such as "0.5,0.3,0.2", or "equal", "small", "large"
    device: str = "auto"
    threads: int = 1
    autocast: bool = False  # bf16
    store: str = ""  # folder for what clients keep; empty: beside the run

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, count=1, per_round=1, per_node=0, threads=1)
        if self.per_round > self.count:
            found.append(f"clients.per-round is {self.per_round} but there are only {self.count} clients")
        return found + one_of(self, device=("auto", "cpu", "cuda"))


@dataclass(frozen=True)
class TrainSection:
    """Local training; defaults of DarkDistill's experiments but for the schedule, which suits small runs."""

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
class NetworkSection:
    """Which early-exit network, and where its exits and tiers are."""

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
class RoundSection:
    """When a round is good enough, and when it is given up."""

    quorum: float = 0.5  # share of the sampled clients that must answer
    deadline: float = 3600.0  # seconds a client may take
    min_nodes: int = 1
    wait: float = 120.0  # seconds to wait for the first nodes
    staleness: float = 0.0  # weight of an answer per round that it is late; 0: it is dropped

    def problems(self) -> list[str]:
        """Return every mistake as a sentence."""
        found = at_least(self, quorum=0.0, deadline=1.0, min_nodes=1, wait=0.0, staleness=0.0)
        return found + [
            f"round.{name} must not exceed 1" for name in ("quorum", "staleness") if getattr(self, name) > 1
        ]


@dataclass(frozen=True)
class ServerSection:
    """The server's own work: distillation and evaluation."""

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
    """All sections; `methods` holds each method's hyper-parameters by section name."""

    run: RunSection = field(default_factory=RunSection)
    clients: ClientsSection = field(default_factory=ClientsSection)
    train: TrainSection = field(default_factory=TrainSection)
    network: NetworkSection = field(default_factory=NetworkSection)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    round: RoundSection = field(default_factory=RoundSection)
    server: ServerSection = field(default_factory=ServerSection)
    methods: Mapping[str, Any] = field(default_factory=dict)

    SECTIONS: ClassVar[tuple[str, ...]] = (
        "run", "clients", "train", "network", "data", "objective", "round", "server",
    )  # fmt: skip

    def flat(self) -> dict[str, Value]:
        """Return Flower's flat form, the inverse of `load_config`."""
        sections = {name: getattr(self, name) for name in self.SECTIONS} | dict(self.methods)
        return {
            key(name, f.name): _plain(getattr(section, f.name))
            for name, section in sections.items()
            for f in fields(section)
        }

    def to_json(self) -> str:
        """Return the flat form as JSON: this is what travels to the clients."""
        return json.dumps(self.flat(), sort_keys=True)


def load_config(flat: Mapping[str, Value], methods: Mapping[str, type]) -> RunConfig:
    """Read a flat configuration; absent keys keep their defaults.

    Raises `UserError` with every unknown key, wrong type and impossible value at once.
    """
    problems: list[str] = []
    hints = get_type_hints(RunConfig)
    sections = {name: hints[name] for name in RunConfig.SECTIONS} | dict(methods)
    known = {key(name, f.name) for name, cls in sections.items() for f in fields(cls)}
    problems += [f"unknown key {k!r}" for k in sorted(set(flat) - known)]
    read = {name: _read(cls, name, flat, problems) for name, cls in sections.items()}
    if problems:
        raise UserError("the configuration has mistakes:\n  - " + "\n  - ".join(problems))
    return RunConfig(**{n: read[n] for n in RunConfig.SECTIONS}, methods={n: read[n] for n in methods})


def key(section: str, name: str) -> str:
    """Return the key of a field as written in TOML: `clients.per-round`."""
    return f"{section}.{name.replace('_', '-')}"


def at_least(section: object, **bounds: float) -> list[str]:
    """Return a sentence for every named field that is below its bound or not finite."""
    name = _section_name(section)
    return [
        f"{key(name, f)} is {getattr(section, f)}, must be at least {low}"
        for f, low in bounds.items()
        if not (math.isfinite(getattr(section, f)) and getattr(section, f) >= low)
    ]


def one_of(section: object, **choices: tuple[str, ...]) -> list[str]:
    """Return a sentence for every named field whose value is not among its choices."""
    name = _section_name(section)
    return [
        f"{key(name, f)} is {getattr(section, f)!r}, must be one of {', '.join(allowed)}"
        for f, allowed in choices.items()
        if getattr(section, f) not in allowed
    ]


def _section_name(section: object) -> str:
    return type(section).__name__.removesuffix("Section").removesuffix("Config").lower()


def _read(cls: type[S], name: str, flat: Mapping[str, Value], problems: list[str]) -> S:
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        k = key(name, f.name)
        if k not in flat:
            continue
        try:
            values[f.name] = _convert(flat[k], hints[f.name])
        except (TypeError, ValueError) as error:
            problems.append(f"{k} = {flat[k]!r}: {error}")
    section = cls(**values)
    found: list[str] = section.problems()  # type: ignore[attr-defined]
    problems += [problem if problem.startswith(name) else f"{name}: {problem}" for problem in found]
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

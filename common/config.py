"""The run's configuration: all its sections, and one error message that lists everything wrong.

Flower's run configuration is flat (`{"data.alpha": 0.5}`) and has str, int, float and bool only: a list is written as
a comma-separated string. A section is a model of pydantic; every method brings its own section of hyper-parameters.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

from pydantic.fields import FieldInfo

from common.errors import UserError
from common.sections.data import DataConfig
from common.sections.general import (
    PATIENCE,
    ClientsSection,
    NetworkSection,
    RoundSection,
    RunSection,
    ServerSection,
    TrainSection,
)
from common.sections.objective import ObjectiveConfig
from common.settings import Settings, key, keys, like, read_section, without

Value = str | int | float | bool
S = TypeVar("S", bound=Settings)


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

    @property
    def patience(self) -> float:
        """Real seconds that a client may take: by the simulated clock, `round.deadline` says nothing of these."""
        return self.round.deadline if self.clients.clock == "measured" else PATIENCE

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
            key(section.SECTION, name): _plain(value)
            for section in (*sections, *self.settings.values())
            for name, value in section
        }

    def to_json(self) -> str:
        """Return the flat form as JSON: this is what travels to the clients."""
        return json.dumps(self.flat(), sort_keys=True)


def fields_of(kinds: Iterable[type[Settings]] = ()) -> dict[str, FieldInfo]:
    """Return every key with its field: of the common sections, and of these kinds."""
    return {k: f for kind in (*RunConfig.COMMON, *kinds) for k, f in keys(kind).items()}


def load_config(
    flat: Mapping[str, Value],
    kinds: Iterable[type[Settings]] = (),
    check: Callable[[RunConfig], Iterable[str]] = lambda config: (),
) -> RunConfig:
    """Read a flat configuration with sections of these kinds beside the common ones; absent keys keep their defaults.

    `check` returns a sentence for every mistake that no section shows by itself. Raises `UserError` with all unknown
    keys and all mistakes at once.
    """
    kinds = tuple(kinds)
    known = fields_of(kinds)
    problems = [f"{k} is unknown{_meant(k, known)}" for k in sorted(flat.keys() - known.keys())]
    wrong, sections = list[str](), dict[type[Settings], Settings]()
    for kind in (*RunConfig.COMMON, *kinds):
        found = read_section(kind, **{k.partition(".")[2]: flat[k] for k in keys(kind) if k in flat})
        sections[kind] = found.section
        problems += found.problems
        wrong += [*found.wrong, *(sentence.partition(" ")[0] for sentence in found.others)]  # which begin with a key
    common = {kind.SECTION: sections[kind] for kind in RunConfig.COMMON}
    config = RunConfig(**common, settings={kind: sections[kind] for kind in kinds})  # type: ignore[arg-type]
    problems += without(check(config), wrong)
    if problems:
        raise UserError("the configuration has mistakes:\n  - " + "\n  - ".join(problems))
    return config


def replace(config: RunConfig, **changes: Mapping[str, Any]) -> RunConfig:
    """Return a copy with fields of sections changed: `replace(config, run={"seed": 2})`."""
    changed = {name: getattr(config, name).changed(**change) for name, change in changes.items()}
    return dataclasses.replace(config, **changed)


def _meant(unknown: str, known: Collection[str]) -> str:
    """Return a remark on the known keys that an unknown one may stand for: other spellings, sections, names."""
    spelled = unknown.lower().replace("_", "-").replace("learning-rate", "lr")  # as others spell it
    elsewhere = [k for k in known if k.partition(".")[2] == spelled.rpartition(".")[2]]
    if spelled in known or elsewhere:
        return f"; do you mean {spelled if spelled in known else ' or '.join(sorted(elsewhere))}?"
    return like(unknown, known) or "; `python -m server config --all` lists all keys"


def _plain(value: object) -> Value:
    return ",".join(map(str, value)) if isinstance(value, tuple) else cast(Value, value)

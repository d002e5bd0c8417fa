"""What every section of the configuration has in common: its name, its keys as a user types them, its checks."""

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Settings:
    """A section of the configuration: a frozen dataclass whose fields are `str`, `int`, `float`, `bool` or tuples."""

    SECTION: ClassVar[str]  # its name: the field `server_lr` of section "splitee" is the key `splitee.server-lr`

    def problems(self) -> list[str]:
        """Return a sentence for every mistake, each with the key as a user types it; none if there is none."""
        return []


def key(section: str, name: str) -> str:
    """Return the key of a field as a user types it: `clients.per-round`."""
    return f"{section}.{name.replace('_', '-')}"


def at_least(section: Settings, **bounds: float) -> list[str]:
    """Return a sentence for every named field that is below its bound or not finite."""
    return [
        f"{key(section.SECTION, name)} is {getattr(section, name)}, must be at least {low}"
        for name, low in bounds.items()
        if not (math.isfinite(getattr(section, name)) and getattr(section, name) >= low)
    ]


def above_zero(section: Settings, *names: str) -> list[str]:
    """Return a sentence for every named field that is not above 0, or not finite."""
    return [
        f"{key(section.SECTION, name)} is {getattr(section, name)}, must be above 0"
        for name in names
        if not 0 < getattr(section, name) < math.inf
    ]


def at_most(section: Settings, **bounds: float) -> list[str]:
    """Return a sentence for every named field that is above its bound."""
    return [
        f"{key(section.SECTION, name)} is {getattr(section, name)}, must be at most {high}"
        for name, high in bounds.items()
        if getattr(section, name) > high
    ]


def one_of(section: Settings, **choices: tuple[str, ...]) -> list[str]:
    """Return a sentence for every named field whose value is not among its choices."""
    return [
        f"{key(section.SECTION, name)} is {getattr(section, name)!r}, must be one of {', '.join(allowed)}"
        for name, allowed in choices.items()
        if getattr(section, name) not in allowed
    ]

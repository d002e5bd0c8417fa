"""Profiles of devices: how fast they compute and send, and which of them the virtual clients are (`clients.devices`).

A table of known devices is in `profiles.toml`; a file of the user's own adds to it (`clients.profiles`). No torch here:
launchers read profiles.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.capacity import Capacity, dealt, parse_capacity
from common.errors import UserError
from common.settings import like

TABLE = Path(__file__).parent / "profiles.toml"
QUANTITIES = ("compute", "memory", "bandwidth")  # written with units, as a device declares them
NUMBERS = ("latency", "busy-watts", "idle-watts")
NEEDED = ("compute", "bandwidth")
TEXTS = ("device", "source")
LARGEST = 1e18  # of any number but speeds: what is computed from a device's own numbers stays finite


@dataclass(frozen=True)
class Profile:
    """What a kind of device can do, and what it draws."""

    compute: float  # floating-point operations per second that training sustains, two per MAC
    bandwidth: float = math.inf  # bits per second, each way
    latency: float = 0.0  # seconds of a message's way there and back
    memory: float | None = None  # bytes that training may take; None: does not bind
    busy_watts: float | None = None  # while it trains or sends; None: unknown
    idle_watts: float | None = None  # while it waits for the round's end; None: unknown

    def __post_init__(self) -> None:
        """Raise `ValueError` for numbers that no device has."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        if any(not isinstance(value, int | float) or isinstance(value, bool) for value in values.values()):
            raise ValueError("a profile is made of numbers")
        others = (self.latency, self.busy_watts or 0.0, self.idle_watts or 0.0, self.memory or 0.0)
        possible = all(0 <= other <= LARGEST for other in others)
        if not (possible and 1 <= self.compute < math.inf and self.bandwidth >= 1):  # NaN compares false
            raise ValueError(f"a profile cannot have {', '.join(f'{name} {value}' for name, value in values.items())}")

    @property
    def capacity(self) -> Capacity:
        """What it declares, from which a client chooses its part."""
        return Capacity(self.memory, self.compute, None if math.isinf(self.bandwidth) else self.bandwidth)

    def known(self) -> dict[str, float]:
        """Return the fields that are known, as JSON takes them; `Profile(**known)` is the inverse."""
        return {name: value for name, value in vars(self).items() if value is not None and value != math.inf}


def parse_devices(text: str) -> dict[str, float]:
    """Return the shares of `pi4:0.4,laptop:0.6` by name, summing to 1; raises `UserError`."""
    shares: dict[str, float] = {}
    for entry in text.split(","):
        name, colon, share = (part.strip() for part in entry.partition(":"))
        try:
            value = float(share) if colon else 1.0
        except ValueError:
            value = math.nan
        if not name or not 0 <= value < math.inf:
            raise UserError(
                f"clients.devices has {entry.strip()!r}: write NAME:SHARE, the share a number from 0 on, such as "
                "pi4:0.4,laptop:0.6"
            )
        if name in shares:
            raise UserError(f"clients.devices names {name} twice: give it one share")
        shares[name] = value
    if not any(shares.values()):
        raise UserError(f"clients.devices is {text!r}: one share must be above 0")
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def device_of(devices: Mapping[str, float], client: int, count: int) -> str:
    """Return the name of a client's profile: consecutive ids share one, in the order in which they are named."""
    return list(devices)[dealt(list(devices.values()), client, count)]


def read_profiles(devices: str, file: str = "") -> dict[str, Profile]:
    """Return the profiles that `clients.devices` names, in its order; none if it is empty.

    `file` is the user's own table, which adds to the known ones and wins over them. Raises `UserError` for a file that
    cannot be read, an unknown name and a profile that lacks a number.
    """
    if not devices:
        return {}
    tables = _tables(TABLE) | (_tables(Path(file)) if file else {})
    found = {}
    for name in parse_devices(devices):
        if name not in tables:
            known = ", ".join(sorted(tables))
            raise UserError(
                f"clients.devices names {name!r}, which is no known profile: choose of {known}, or describe it in a "
                f"file of your own (clients.profiles){like(name, tables)}"
            )
        found[name] = _profile(name, tables[name])
    return found


def _tables(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"clients.profiles {str(path)!r} cannot be read: {error}: give a TOML file") from error


def _profile(name: str, table: object) -> Profile:
    """Return a profile from its table; raises `UserError` for what is missing, unknown or no number."""
    if not isinstance(table, dict):
        raise UserError(f"profile {name!r} is {table!r}: write a table [{name}]")
    if unknown := sorted(table.keys() - {*QUANTITIES, *NUMBERS, *TEXTS}):
        raise UserError(
            f"profile {name!r} has the unknown field {unknown[0]}: a profile has "
            f"{', '.join((*QUANTITIES, *NUMBERS, *TEXTS))}"
        )
    for field in NEEDED:
        if field not in table:
            raise UserError(f"profile {name!r} has no {field}, without which nothing can be timed: add {field}")
    try:
        capacity = parse_capacity({field: table[field] for field in QUANTITIES if field in table})
    except UserError as error:
        raise UserError(f"profile {name!r}: {error}") from error
    for field in NUMBERS:
        value = table.get(field, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST:
            raise UserError(f"profile {name!r}: {field} is {value!r}, must be a number from 0 to {LARGEST:g}")
    assert capacity.compute is not None and capacity.bandwidth is not None  # both are needed
    return Profile(
        capacity.compute, capacity.bandwidth, float(table.get("latency", 0.0)), capacity.memory,
        table.get("busy-watts"), table.get("idle-watts"),
    )  # fmt: skip

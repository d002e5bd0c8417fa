"""A device's declared or probed capacity -> the exit depth it can train, over the network's cost table.

The client chooses; the server receives the choice and its reason. Declarations (Flower node configuration or a
virtual client's share of the mix):

    depth=2                                   the tier itself; where a method cuts the network: cut=5
    memory="512MB" compute="2GFLOPS" bandwidth="10Mbps"    what there is; each may be left out
    capacity="auto"                           probe this machine
    capacity="low"                            one of CLASSES, where no numbers are known
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from common.errors import UserError
from common.memory import available_memory

if TYPE_CHECKING:  # launchers read capacities and do not need torch, whose import takes seconds
    from common.networks.cost import CostTable

MIXES = {"small": (0.4, 0.3, 0.2, 0.1), "large": (0.1, 0.2, 0.3, 0.4)}  # DarkDistill's robustness mixes
TRAINING_MACS = 3  # a step costs about three forward passes: forward, gradient of inputs, gradient of weights
ROUND_SECONDS = 60.0  # a device should train one local epoch within this, and move its model there and back
POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
LEAST = 1000  # of anything that is declared
DECLARED = {"memory": "B", "compute": "FLOPS", "bandwidth": "bps"}  # what a device may declare, and its unit
OVERRIDES = ("depth", "cut", "student")  # a part by number, in the place of what it needs
KEYS = (*DECLARED, *OVERRIDES)  # what a node configuration may say of a capacity
CLASSES = {
    "low": {"memory": "64MB", "compute": "1GFLOPS"},  # to spare on a board of half a gigabyte
    "medium": {"memory": "512MB", "compute": "20GFLOPS"},  # on a phone or a board of four
    "high": {"memory": "4GB", "compute": "200GFLOPS"},  # on a laptop
}


@dataclass(frozen=True)
class Capacity:
    """What a device offers to training; None means that this does not bind."""

    memory: float | None = None  # bytes
    compute: float | None = None  # floating-point operations per second, two per MAC
    bandwidth: float | None = None  # bits per second, each way
    depth: int | None = None  # overrides the others
    cut: int | None = None  # likewise, where a method cuts the network
    student: int | None = None  # likewise, where devices train students

    @property
    def limits(self) -> tuple[float, float, float]:
        """Memory, compute and bandwidth; infinite where nothing binds."""
        bounds = (self.memory, self.compute, self.bandwidth)
        memory, compute, bandwidth = (math.inf if bound is None else bound for bound in bounds)
        return memory, compute, bandwidth

    def covers(self, other: "Capacity") -> bool:
        """Return whether there is at least as much of everything as the other has."""
        return all(own >= least for own, least in zip(self.limits, other.limits, strict=True))


@dataclass(frozen=True)
class Choice:
    """The part that a client trains (0: none fits) and why."""

    part: int
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)  # what the method wants to know of the choice


def parse_capacity(node: Mapping[str, object]) -> Capacity:
    """Read a node configuration; raises `UserError` on a value that cannot be read."""
    if overrides := {name: _whole(node[name], name) for name in OVERRIDES if name in node}:
        return Capacity(**overrides)
    if "capacity" in node:
        if node["capacity"] == "auto":
            return probe()
        if node["capacity"] not in CLASSES:
            known = ", ".join(("auto", *CLASSES))
            raise UserError(f"capacity={node['capacity']!r}: write capacity=NAME of {known}, or {', '.join(DECLARED)}")
        node = CLASSES[str(node["capacity"])]
    given = {name: _quantity(node[name], name, unit) for name, unit in DECLARED.items() if name in node}
    return Capacity(given.get("memory"), given.get("compute"), given.get("bandwidth"))


def read_node(text: str, keys: Sequence[str] = KEYS) -> dict[str, str]:
    """Return the node configuration that a user's `low` or `memory=512MB,compute=2GFLOPS` stands for.

    Raises `UserError` when it is neither one of CLASSES nor made of these keys.
    """
    if text in CLASSES:
        return dict(CLASSES[text])
    node: dict[str, str] = {}
    for pair in text.split(","):
        key, _, value = (part.strip() for part in pair.partition("="))
        if key not in keys or not value:
            raise UserError(
                f"{text!r}: write {', '.join(CLASSES)}, or KEY=VALUE with {', '.join(keys)}, "
                "such as memory=512MB,compute=2GFLOPS"
            )
        node[key] = value
    return node


def choose_depth(capacity: Capacity, costs: "CostTable", batch_size: int, samples: int) -> Choice:
    """Return the deepest tier that the capacity carries for a local epoch of `samples` samples."""
    tiers = len(costs.tiers)
    if choice := override(capacity, "depth", range(1, tiers + 1)):
        return choice
    reason = "no limit declared"
    for depth in range(tiers, 0, -1):
        needs, macs = costs.tier_training_memory(depth, batch_size), costs.tier_macs(depth) * samples
        sent = 32 * (costs.tier_parameters(depth) + costs.tier_uploads(depth))  # fp32, down and up
        problem = lacking(capacity, needs, macs, sent)
        if not problem:
            return Choice(depth, reason if depth < tiers else "the whole network fits")
        reason = f"tier {depth} {problem}"
    return Choice(0, f"nothing fits: {reason}")


def override(capacity: Capacity, word: str, offered: Sequence[int]) -> Choice | None:
    """Return the choice that a declared number makes where parts are called `word`; None if none is declared."""
    number = getattr(capacity, word)
    if number in offered:
        return Choice(number, f"declared {word} {number}")
    if number is not None:
        return Choice(0, f"declared {word} {number}, but this run offers {word} {', '.join(map(str, offered))}")
    for other in OVERRIDES:
        if (number := getattr(capacity, other)) is not None:
            return Choice(0, f"declared {other} {number}, but this run needs a {word}: declare {word}= too")
    return None


def lacking(
    capacity: Capacity, memory: float, macs: float, bits: float, on_link: str = "would take {:.0f} s on the link"
) -> str:
    """Return what of a capacity a local epoch exceeds, as a phrase after its subject, or nothing.

    Args:
        capacity: what there is.
        memory: bytes that training takes.
        macs: of the forward passes of all samples.
        bits: that go over the link.
        on_link: what to say of the seconds there.
    """
    if capacity.memory is not None and memory > capacity.memory:
        return f"needs {memory / 1e6:.1f} MB of {capacity.memory / 1e6:.1f} MB"
    seconds = 2 * TRAINING_MACS * macs / capacity.compute if capacity.compute else 0.0
    if seconds > ROUND_SECONDS:
        return f"would take {seconds:.0f} s an epoch, more than {ROUND_SECONDS:.0f} s"
    seconds = bits / capacity.bandwidth if capacity.bandwidth else 0.0
    if seconds > ROUND_SECONDS:
        return f"{on_link.format(seconds)}, more than {ROUND_SECONDS:.0f} s"
    return ""


def mix_depth(mix: str, client: int, count: int, tiers: int) -> int:
    """Return the declared depth of a virtual client: consecutive ids share a tier (DarkDistill, experiments).

    Raises `UserError` when the mix does not name one share per tier.
    """
    return dealt(parse_mix(mix, tiers), client, count) + 1


def dealt(shares: Sequence[float], client: int, count: int) -> int:
    """Return the position of the share that one of `count` clients belongs to; the shares, summing to 1, go by ids."""
    bound = 0.0
    for position, share in enumerate(shares):
        bound += share * count
        if client < round(bound):
            return position
    return max(position for position, share in enumerate(shares) if share > 0)


def parse_mix(mix: str, tiers: int) -> Sequence[float]:
    """Return the shares of a mix, summing to 1; raises `UserError`."""
    try:
        shares = (
            (1.0,) * tiers
            if mix in ("auto", "equal")
            else MIXES.get(mix) or tuple(float(part) for part in mix.replace("/", ",").split(","))
        )
    except ValueError as error:
        raise UserError(
            f"clients.mix {mix!r} is not a list of numbers, nor one of auto, equal, {', '.join(MIXES)}"
        ) from error
    if len(shares) != tiers or not all(0 <= share < math.inf for share in shares) or not any(shares):
        raise UserError(f"clients.mix {mix!r} must give one share, 0 or more, for each of the {tiers} tiers")
    return [share / sum(shares) for share in shares]


def probe() -> Capacity:
    """Measure this machine: half of the memory that is available, and a matrix product's speed on one thread."""
    import torch

    from common.seeding import generator

    size, operand = 512, torch.rand(512, 512, generator=generator("probe"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        operand @ operand
        start = time.perf_counter()
        repeats = 8
        for _ in range(repeats):
            operand @ operand
        seconds = time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
    return Capacity(memory=available_memory() / 2, compute=repeats * 2 * size**3 / seconds)


def _quantity(value: object, name: str, unit: str) -> float:
    match = re.fullmatch(rf"([0-9.]+)\s*([kmgt]?)(i?)({unit})?", str(value).strip(), re.IGNORECASE)
    try:
        amount = float(match[1]) * (1024 if match[3] else 1000) ** POWERS[match[2].lower()] if match else 0.0
    except ValueError:
        amount = 0.0
    if amount <= 0:
        raise UserError(f'{name}={value!r} cannot be read: write a number with a unit, such as {name}="512M{unit}"')
    if amount < LEAST:
        raise UserError(
            f'{name}={value!r} is less than any device has: is a prefix missing, as in {name}="512M{unit}"?'
        )
    return amount


def _whole(value: object, name: str) -> int:
    try:
        return int(str(value))
    except ValueError as error:
        raise UserError(f"{name}={value!r} is not a whole number") from error

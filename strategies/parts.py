"""What of the whole network a device holds, by number: a depth tier, a cut of split training, or one of K students.

`Parts` is a way of dividing any network of a kind, `Division` is one network divided in that way. The frame sees the
second alone, so it is the same for all three.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from torch import nn

from common.capacity import Capacity, Choice, choose_depth
from common.config import RunConfig
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.cost import CostTable, cost_table

S = TypeVar("S", bound="Spec")
N = TypeVar("N", bound=nn.Module)
C = TypeVar("C", bound="Costs")


class Spec(Protocol):
    """Everything that decides the whole network's shape."""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    def without_weights(self) -> "Spec":
        """Return the spec for devices, which receive weights and need not have the file that the server read."""
        ...

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        ...


class Costs(Protocol):
    """What the whole network and its parts cost."""

    def to_json(self) -> str:
        """Return the costs as one line of JSON."""
        ...


class Parts(ABC, Generic[S, N, C]):
    """A way of dividing a network N of spec S with costs C."""

    word: str  # what a user calls a part: "depth", "cut" or "student"

    @abstractmethod
    def spec(self, text: str) -> S:
        """Return the spec that `to_json` wrote; raises `UserError`."""

    @abstractmethod
    def whole(self, spec: S, seed: int) -> N:
        """Return the whole network: the same seed gives the same bits."""

    @abstractmethod
    def costs(self, whole: N) -> C:
        """Return what the whole network and its parts cost."""

    @abstractmethod
    def read_costs(self, text: str) -> C:
        """Return the costs that `to_json` wrote."""

    @abstractmethod
    def numbers(self, costs: C, config: RunConfig) -> Sequence[int]:
        """Return the parts that a device may hold, from the smallest to the largest."""

    @abstractmethod
    def take(self, network: N, number: int) -> N:
        """Return a copy of a part."""

    @abstractmethod
    def stored(self, number: int) -> tuple[int, int]:
        """Return a part as a stored model names it: its depth tier and 0, or 0 and its cut."""

    @abstractmethod
    def macs(self, costs: C, number: int) -> int:
        """Return the MACs of one sample's forward pass through a part."""

    @abstractmethod
    def parameters(self, costs: C, number: int) -> int:
        """Return the number of parameters of a part."""

    @abstractmethod
    def exit_macs(self, costs: C, number: int) -> list[float]:
        """Return the MACs of a sample that leaves at each exit of the network that a client of this part uses."""

    @abstractmethod
    def choose(self, capacity: Capacity, costs: C, config: RunConfig, samples: int, client: int = 0) -> Choice:
        """Return the part that a device chooses for a client with so many samples; 0 if none fits."""

    def divide(self, spec: str, seed: int, costs: str = "") -> "Division":
        """Return the network of this spec divided; `costs` saves a device from counting them again. Both are JSON."""
        return Division(self, spec, seed, costs)


AnyParts: TypeAlias = Parts[Any, Any, Any]  # as a method's card has them, of whatever kind of network


class Division:
    """One network and its parts, by number; what is expensive is made when it is first needed."""

    def __init__(self, parts: AnyParts, spec: str, seed: int, costs: str = "") -> None:
        self.parts = parts
        self.word: str = parts.word
        self.spec: Spec = parts.spec(spec)
        self._seed, self._costs = seed, costs

    @cached_property
    def whole(self) -> nn.Module:
        """The whole network: the same seed gives the same bits."""
        whole: nn.Module = self.parts.whole(self.spec, self._seed)
        return whole

    @cached_property
    def costs(self) -> Costs:
        """What the whole network and its parts cost."""
        costs: Costs = self.parts.read_costs(self._costs) if self._costs else self.parts.costs(self.whole)
        return costs

    def numbers(self, config: RunConfig) -> Sequence[int]:
        """Return the parts that a device may hold, from the smallest to the largest."""
        return self.parts.numbers(self.costs, config)

    def take(self, number: int) -> nn.Module:
        """Return a copy of a part."""
        part: nn.Module = self.parts.take(self.whole, number)
        return part

    def macs(self, number: int) -> int:
        """Return the MACs of one sample's forward pass through a part."""
        return self.parts.macs(self.costs, number)

    def parameters(self, number: int) -> int:
        """Return the number of parameters of a part."""
        return self.parts.parameters(self.costs, number)

    def exit_macs(self, number: int) -> list[float]:
        """Return the MACs of a sample that leaves at each exit of the network that a client of this part uses."""
        return self.parts.exit_macs(self.costs, number)

    def choose(self, capacity: Capacity, config: RunConfig, samples: int, client: int = 0) -> Choice:
        """Return the part that a device chooses for a client with so many samples; 0 if none fits."""
        return self.parts.choose(capacity, self.costs, config, samples, client)


class NetworkParts(Parts[NetworkSpec, EarlyExitNetwork, CostTable]):
    """What all ways of dividing one early-exit network share."""

    def spec(self, text: str) -> NetworkSpec:
        """Return the network's spec."""
        return NetworkSpec.from_json(text)

    def whole(self, spec: NetworkSpec, seed: int) -> EarlyExitNetwork:
        """Return the network."""
        return build(spec, seed)

    def costs(self, whole: EarlyExitNetwork) -> CostTable:
        """Return the network's table."""
        return cost_table(whole)

    def read_costs(self, text: str) -> CostTable:
        """Return the table that `to_json` wrote."""
        return CostTable.from_json(text)


class Tiers(NetworkParts):
    """Prefixes that end with a tier's deepest exit."""

    word = "depth"

    def numbers(self, costs: CostTable, config: RunConfig) -> Sequence[int]:
        """Return the tiers, from 1."""
        return range(1, len(costs.tiers) + 1)

    def take(self, network: EarlyExitNetwork, number: int) -> EarlyExitNetwork:
        """Return a copy of a tier's prefix."""
        return network.prefix(number)

    def stored(self, number: int) -> tuple[int, int]:
        """Return the tier and 0."""
        return number, 0

    def macs(self, costs: CostTable, number: int) -> int:
        """Return the MACs of a sample that leaves at the tier's deepest exit."""
        return costs.tier_macs(number)

    def parameters(self, costs: CostTable, number: int) -> int:
        """Return the number of parameters of a tier's prefix."""
        return costs.tier_parameters(number)

    def exit_macs(self, costs: CostTable, number: int) -> list[float]:
        """Return the MACs of a sample that leaves at each of the tier's exits."""
        return [
            float(costs.cut_macs(position)) for position in sorted(costs.exits) if position <= costs.tiers[number - 1]
        ]

    def choose(self, capacity: Capacity, costs: CostTable, config: RunConfig, samples: int, client: int = 0) -> Choice:
        """Return the deepest tier that the capacity carries, whatever the client."""
        return choose_depth(capacity, costs, config.train.batch_size, samples)


TIERS = Tiers()

"""What of the whole a device holds, by number: depth tiers, the cuts of split training, or one of several students."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from common.capacity import Capacity, Choice, choose_depth
from common.config import RunConfig
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.cost import CostTable, cost_table

N = TypeVar("N")
S = TypeVar("S", bound="Spec")
C = TypeVar("C", bound="Costs")


class Spec(Protocol):
    """Everything that decides the whole's shape."""

    @property
    def num_classes(self) -> int:
        """Classes that it tells apart."""
        ...

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    def without_weights(self) -> "Spec":
        """Return the spec for devices, which get weights and need not have the file that the server read."""
        ...

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        ...


class Costs(Protocol):
    """What the whole and its parts cost."""

    def to_json(self) -> str:
        """Return the costs as one line of JSON."""
        ...


class Parts(Protocol[S, N, C]):
    """A way of dividing the whole N of spec S and costs C.

    Everything that is called `depth` elsewhere is one of `numbers`.
    """

    word: str  # what a user calls a part

    def spec(self, text: str) -> S:
        """Return the spec that `to_json` wrote; raises `UserError`."""
        ...

    def whole(self, spec: S, seed: int) -> N:
        """Return the whole: the same seed gives the same bits."""
        ...

    def costs(self, whole: N) -> C:
        """Return what the whole and its parts cost."""
        ...

    def read_costs(self, text: str) -> C:
        """Return the costs that `to_json` wrote."""
        ...

    def numbers(self, costs: C, config: RunConfig) -> Sequence[int]:
        """Return the parts that a device may hold, from the smallest to the largest."""
        ...

    def take(self, network: N, number: int) -> N:
        """Return a copy of a part."""
        ...

    def named(self, number: int) -> tuple[int, int]:
        """Return a part as a stored model names it: its depth tier and 0, or 0 and its cut."""
        ...

    def macs(self, costs: C, number: int) -> int:
        """Return the MACs of one sample's forward pass through a part."""
        ...

    def parameters(self, costs: C, number: int) -> int:
        """Return the number of parameters of a part."""
        ...

    def exit_macs(self, costs: C, number: int) -> list[float]:
        """Return the MACs of a sample that leaves at each exit, of the network that a client of this part uses."""
        ...

    def choose(self, capacity: Capacity, costs: C, config: RunConfig, samples: int, client: int = 0) -> Choice:
        """Return the part that a device chooses for a client with so many samples; 0 if none fits."""
        ...


class NetworkParts:
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

    def named(self, number: int) -> tuple[int, int]:
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
        """Return the deepest tier that the capacity carries, for whatever client."""
        return choose_depth(capacity, costs, config.train.batch_size, samples)


TIERS = Tiers()

"""What of the network a device holds, by number: depth tiers, or the cuts of split training."""

from collections.abc import Sequence
from typing import Protocol

from common.capacity import Capacity, Choice, choose_depth
from common.config import RunConfig
from common.networks import EarlyExitNetwork
from common.networks.cost import CostTable


class Parts(Protocol):
    """A way of dividing the network. Everything that is called `depth` elsewhere is one of `numbers`."""

    word: str  # what a user calls a part

    def numbers(self, costs: CostTable, config: RunConfig) -> Sequence[int]:
        """Return the parts that a device may hold, from the smallest to the largest."""
        ...

    def take(self, network: EarlyExitNetwork, number: int) -> EarlyExitNetwork:
        """Return a copy of a part."""
        ...

    def named(self, number: int) -> tuple[int, int]:
        """Return a part as a stored model names it: its depth tier and 0, or 0 and its cut."""
        ...

    def macs(self, costs: CostTable, number: int) -> int:
        """Return the MACs of one sample's forward pass through a part."""
        ...

    def parameters(self, costs: CostTable, number: int) -> int:
        """Return the number of parameters of a part."""
        ...

    def exit_macs(self, costs: CostTable, number: int) -> list[float]:
        """Return the MACs of a sample that leaves at each exit, of the network that a client of this part uses."""
        ...

    def choose(self, capacity: Capacity, costs: CostTable, config: RunConfig, samples: int) -> Choice:
        """Return the part that a device chooses; 0 if none fits."""
        ...


class Tiers:
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

    def choose(self, capacity: Capacity, costs: CostTable, config: RunConfig, samples: int) -> Choice:
        """Return the deepest tier that the capacity carries."""
        return choose_depth(capacity, costs, config.train.batch_size, samples)


TIERS = Tiers()

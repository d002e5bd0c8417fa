"""Which cut a device takes: how many units it trains itself before it hands its features on.

A deeper cut makes the device's own exit better and its features smaller, and asks more of its memory and its processor.
So a device takes the deepest cut that it can carry, of those whose features its link can carry.
"""

from collections.abc import Sequence

from common.capacity import Capacity, Choice, lacking, override
from common.config import RunConfig
from common.networks import EarlyExitNetwork
from common.networks.cost import CostTable
from strategies.hetero_splitee.learner import device_part
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.parts import NetworkParts

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "uint8": 1}  # per value on the wire


class Cuts(NetworkParts):
    """Units before a cut, with one exit at the cut."""

    word = "cut"

    def numbers(self, costs: CostTable, config: RunConfig) -> Sequence[int]:
        """Return the cuts that are offered, shallow to deep: those of `splitee.cuts`, or all."""
        settings = config.of(SplitEESettings)
        return settings.cuts or range(1, len(costs.units))

    def take(self, network: EarlyExitNetwork, number: int) -> EarlyExitNetwork:
        """Return a copy of a device's part; raises `UserError` unless both sides have layers."""
        return device_part(network, number)

    def stored(self, number: int) -> tuple[int, int]:
        """Return 0 and the cut."""
        return 0, number

    def macs(self, costs: CostTable, number: int) -> int:
        """Return the MACs of one sample's forward pass on the device."""
        return costs.cut_macs(number)

    def parameters(self, costs: CostTable, number: int) -> int:
        """Return the number of parameters on the device, without the exit at the cut."""
        return costs.cut_parameters(number)

    def exit_macs(self, costs: CostTable, number: int) -> list[float]:
        """Return the MACs of a sample that the device answers, and of one that the server answers, both sides added."""
        return [float(costs.cut_macs(number)), float(costs.cut_macs(len(costs.units)))]

    def choose(self, capacity: Capacity, costs: CostTable, config: RunConfig, samples: int, client: int = 0) -> Choice:
        """Return the deepest cut that memory, processor and link carry in a local epoch of `samples` samples."""
        offered = self.numbers(costs, config)
        if choice := override(capacity, self.word, offered):
            return choice
        reasons: list[str] = []
        for cut in reversed(offered):
            if problem := _problem(capacity, costs, config, samples, cut):
                reasons.append(f"cut {cut} {problem}")
            else:
                deepest = (
                    "the deepest cut fits"
                    if any((capacity.memory, capacity.compute, capacity.bandwidth))
                    else "no limit declared"
                )
                return Choice(cut, reasons[-1] if reasons else deepest)
        return Choice(0, "nothing fits: " + "; ".join(reasons[-2:]))


def _problem(capacity: Capacity, costs: CostTable, config: RunConfig, samples: int, cut: int) -> str:
    """Return why a device cannot take a cut, or nothing."""
    settings = config.of(SplitEESettings)
    needs = costs.cut_training_memory(cut, config.train.batch_size)
    values = costs.units[cut - 1].activation_bytes / BYTES["fp32"]
    bits = 8 * values * BYTES[settings.coding] * (2 if settings.gradient == "return" else 1)
    on_link = "sends features for {:.0f} s an epoch"
    return lacking(capacity, needs, costs.cut_macs(cut) * samples, bits * samples, on_link)


CUTS = Cuts()

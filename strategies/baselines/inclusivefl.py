"""InclusiveFL (Liu et al., KDD 2022, arXiv 2202.08036): the last layer of a small model learns from a larger model.

W_k := average of the clients of tier k                       homogeneous aggregation
g_k := W - W_k                                                what the round moved: the tier's gradient
W_k := W_k + beta * (g_k - m_k)   in the last unit of tier k  momentum distillation: (1 - beta) g_k + beta m_k
m_k := mean of g_{k+1} over the units n_k .. n_{k+1}          for the next round; n_k is the last unit of tier k
W := average of every layer over the tiers that hold it       heterogeneous aggregation

The tiers are adjacent sizes, and m_k is the larger model's gradient of the round before, as in the authors' code. Ours,
where a transformer's equal layers are not at hand: m_k is a mean over those units whose parameters have the names and
shapes of the unit n_k, which is at least n_k itself; and a gradient is what E local epochs moved. BatchNorm's
statistics are averaged alone.

Left out: each size's own last layer and classifier. Here all sizes are one early-exit network, whose exits all clients
train that hold them, as in EEFL.
"""

from collections.abc import Mapping
from typing import Any

import torch

from common.weights.flat import StateDict
from common.weights.layers import average_layers
from strategies.baselines.settings import InclusiveFLSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, RoundUpdate, Setup
from strategies.node.local_training import LocalTraining


def unit_of(state: Mapping[str, torch.Tensor], index: int) -> StateDict:
    """Return the entries of one unit, by the names inside it."""
    prefix = f"units.{index}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def deeper_gradient(gradient: Mapping[str, torch.Tensor], last: int, deepest: int) -> StateDict:
    """Return m_k: the mean gradient of the units `last` to `deepest` of a larger model, those that fit unit `last`."""
    own = unit_of(gradient, last)
    shapes = {name: value.shape for name, value in own.items()}
    others = (unit_of(gradient, index) for index in range(last, deepest + 1))
    fitting = [unit for unit in others if {name: value.shape for name, value in unit.items()} == shapes]
    return {f"units.{last}.{name}": torch.stack([unit[name] for unit in fitting]).mean(0) for name in own}


class InclusiveFL(EarlyExitStrategy):
    """Average the tiers layer by layer, after the gradients of larger ones went into the smaller ones' last units."""

    def __init__(self, method: Method, setup: Setup) -> None:
        super().__init__(method, setup)
        self.beta = self.config.of(InclusiveFLSettings).beta
        self.parameters = {key for key, _ in self.network.named_parameters()}
        self.momentum: dict[int, StateDict] = {}  # m_k by tier, of the last round in which the next tier had clients

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Distil by the last round's momentum, keep this round's, then average layer by layer."""
        averages = {part: tier.state for part, tier in update.tiers.items()}
        gradients = {
            part: {key: self.model[key] - value for key, value in state.items() if key in self.parameters}
            for part, state in averages.items()
        }
        for part, gradient in gradients.items():
            averages[part] = averages[part] | {
                key: averages[part][key] + self.beta * (gradient[key] - taught)
                for key, taught in self.momentum.get(part, {}).items()
            }
        last = [position - 1 for position in self.network.tier_positions]
        for part in self.tiers[:-1]:
            if part + 1 in gradients:
                self.momentum[part] = deeper_gradient(gradients[part + 1], last[part - 1], last[part])
        self.model |= average_layers(averages, {part: float(tier.weight) for part, tier in update.tiers.items()})
        return {}

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return the momentum."""
        return {f"{part}/{key}": value for part, state in self.momentum.items() for key, value in state.items()}, {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take the momentum back."""
        self.momentum = {}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            self.momentum.setdefault(int(part), {})[key] = value


METHOD = Method("inclusivefl", InclusiveFL, LocalTraining, (InclusiveFLSettings,))

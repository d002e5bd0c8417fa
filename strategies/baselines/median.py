"""Median: in every part, coordinate by coordinate, the median of the clients' models (Yin et al., ICML 2018).

1. Clients train as in EEFL.
2. W_k := the coordinate-wise median of the models of the clients of part k; of an even number the lower one.
3. The parts are averaged layer by layer, weighted by their number of clients: a number of samples is only a claim.

A few arbitrary models cannot move the result beyond the others'. The server holds every client's model of a round.
"""

from collections.abc import Mapping
from typing import Any

import torch

from common.weights.flat import FlatState, StateDict
from common.weights.layers import average_layers
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, RoundUpdate
from strategies.node.local_training import LocalTraining


class Median(EarlyExitStrategy):
    """Take the median inside a part, the mean across parts."""

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Replace the part's means by medians, then average layer by layer."""
        medians: dict[int, StateDict] = {}
        for part, tier in update.tiers.items():
            states = [update.states[client] for client in tier.clients]
            floats = torch.stack([state.floats for state in states]).median(dim=0).values
            values = FlatState(states[0].layout, floats, states[0].counters).state_dict()
            medians[part] = tier.state | {key: values[key] for key, _ in states[0].layout.floats}
        self.model |= average_layers(medians, {part: len(tier.clients) for part, tier in update.tiers.items()})
        return {}


METHOD = Method("median", Median, LocalTraining, apart=lambda config: True)

"""EEFL: federated averaging of early-exit prefixes, layer by layer. The baseline that counts.

DarkDistill without generators and distillation (its ablation "w/o RKD"). With `eefl.server-decay` it also has the
weight decay of DarkDistill's published server step: the control that a gain by distillation must beat.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.networks import EarlyExitNetwork
from common.weights.flat import StateDict
from common.weights.layers import average_layers
from strategies.baselines.settings import EEFLSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, RoundUpdate, Setup
from strategies.node.local_training import LocalTraining


class EEFL(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""


class DecayingEEFL(EEFL):
    """Before the tiers are averaged, shrink those that DarkDistill would teach: all present but the shallowest."""

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Shrink and average."""
        kept = 1 - self.config.of(EEFLSettings).server_decay
        students = sorted(update.tiers)[1:]
        states: dict[int, StateDict] = {depth: tier.state for depth, tier in update.tiers.items()}
        for depth in students:
            states[depth] = states[depth] | shrunk_trunk(self.network.prefix(depth), states[depth], kept)
        self.model |= average_layers(states, {depth: float(tier.weight) for depth, tier in update.tiers.items()})
        return {}


def shrunk_trunk(network: EarlyExitNetwork, state: StateDict, kept: float) -> dict[str, Tensor]:
    """Return a state's trunk times `kept`: the trained parameters of all units after the stem, not the exits' heads."""
    return {
        key: kept * state[key]
        for index, unit in network.units.items()
        if int(index) >= network.latent_unit
        for key in (f"units.{index}.{name}" for name, p in unit.named_parameters() if p.requires_grad)
    }


def make(method: Method, setup: Setup) -> EEFL:
    """Return the server half; without a decay nothing comes after the average, so that late answers have a place."""
    return (DecayingEEFL if setup.config.of(EEFLSettings).server_decay else EEFL)(method, setup)


METHOD = Method("eefl", make, LocalTraining, (EEFLSettings,))

"""EEFL: federated averaging of early-exit prefixes, layer by layer. The baseline that counts.

DarkDistill without generators and distillation (its ablation "w/o RKD"). With `eefl.server-decay` it also has the
weight decay of DarkDistill's published server step: the control that a gain by distillation must beat.
"""

from torch import Tensor

from common.networks import EarlyExitNetwork
from common.weights.flat import StateDict
from strategies.baselines.settings import EEFLSettings
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method, RoundUpdate
from strategies.node.local_training import LocalTraining


class EEFL(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""

    def averages(self, update: RoundUpdate) -> dict[int, StateDict]:
        """With a server decay, shrink the tiers that DarkDistill would teach: all present but the shallowest."""
        states, decay = super().averages(update), self.config.of(EEFLSettings).server_decay
        if decay:
            for depth in sorted(states)[1:]:
                states[depth] = states[depth] | shrunk_trunk(self.network.prefix(depth), states[depth], 1 - decay)
        return states


def shrunk_trunk(network: EarlyExitNetwork, state: StateDict, kept: float) -> dict[str, Tensor]:
    """Return a state's trunk times `kept`: the trained parameters of all units after the stem, not the exits' heads."""
    return {
        key: kept * state[key]
        for index, unit in network.units.items()
        if int(index) >= network.latent_unit
        for key in (f"units.{index}.{name}" for name, p in unit.named_parameters() if p.requires_grad)
    }


METHOD = Method("eefl", EEFL, LocalTraining, (EEFLSettings,))

"""EEFL: federated averaging of early-exit prefixes, layer by layer. The baseline that counts.

DarkDistill without generators and distillation (its ablation "w/o RKD").
"""

from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Method
from strategies.node.local_training import LocalTraining


class EEFL(EarlyExitStrategy):
    """Average each layer over the clients that train it, weighted by their samples."""


METHOD = Method("eefl", EEFL, LocalTraining)

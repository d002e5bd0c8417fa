"""ExclusiveFL: federated averaging among the clients that can train the whole network; the others sit out.

The usual lower bound of depth-scaled federated learning (named in InclusiveFL, Liu et al., KDD 2022; a baseline of
DarkDistill, KDD 2025): what weak devices know is lost. All exits are trained, as in EEFL.
"""

from strategies.baselines.base import FullDepthOnly
from strategies.method import Method
from strategies.node.local_training import LocalTraining


class ExclusiveFL(FullDepthOnly):
    """Average the whole networks, weighted by their clients' samples."""


METHOD = Method("exclusivefl", ExclusiveFL, LocalTraining)

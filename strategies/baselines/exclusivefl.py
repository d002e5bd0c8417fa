"""ExclusiveFL: federated averaging among the clients that can train the whole network; the others sit out.

The usual lower bound of depth-scaled federated learning (named in InclusiveFL, Liu et al., KDD 2022; a baseline of
DarkDistill, KDD 2025): what weak devices know is lost. All exits are trained, as in EEFL.
"""

from common.messages.protocol import ClientReport
from strategies.engine.strategy import EarlyExitStrategy
from strategies.node.local_training import LocalTraining
from strategies.registry import Method


class ExclusiveFL(EarlyExitStrategy):
    """EEFL with full-depth clients only."""

    name = "exclusivefl"

    def eligible(self, client: ClientReport) -> bool:
        """Return whether the client declared the full depth."""
        return client.part == len(self.tiers)


METHOD = Method(ExclusiveFL, LocalTraining)

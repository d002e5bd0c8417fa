"""What several baselines share."""

from common.messages.protocol import ClientReport
from strategies.engine.strategy import EarlyExitStrategy


class FullDepthOnly(EarlyExitStrategy):
    """Federated averaging among the clients that can train the whole network; the others sit out."""

    def eligible(self, client: ClientReport) -> bool:
        """Return whether the client declared the full depth."""
        return client.part == len(self.tiers)

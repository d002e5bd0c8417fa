"""Split inference without a run: the server's layers of a finished network; `remote.py` is the device's end."""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.devices import channels_last
from common.networks import EarlyExitNetwork
from strategies.hetero_splitee.learner import server_part, with_statistics
from strategies.hetero_splitee.prior import LabelCounts, adjusted
from strategies.hetero_splitee.remote import OVERHEAD, bytes_per_sample
from strategies.hetero_splitee.statistics import RunningStatistics


class Suffixes:
    """The layers after every cut of a finished network; parts share its parameters. Not thread-safe."""

    def __init__(
        self, network: EarlyExitNetwork, device: torch.device, running: RunningStatistics | None = None,
        counts: LabelCounts | None = None,
    ) -> None:  # fmt: skip
        """`network` is a whole network; `running` are the statistics of cuts and clients that have their own.

        `counts` are the labels of the clients whose answers are adjusted.
        """
        self.counts = counts or LabelCounts()
        network, self.running = network.to(device).eval(), running or RunningStatistics()
        self.device, self.parts = device, {cut: server_part(network, cut) for cut in range(1, network.end)}
        self._last: tuple[tuple[int, int], EarlyExitNetwork] | None = None  # of the client that asked last
        with torch.no_grad():
            x = network.example(1).to(device)
            shapes = {cut: tuple(network.features_at(x, cut).shape[1:]) for cut in self.parts}
        self.shapes: Mapping[int, tuple[int, ...]] = shapes  # cut -> shape of one sample's features

    @torch.no_grad()
    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the last exit's logits (B, classes) of features (B, ...) at a cut, as this client gets them.

        The statistics and the prior are the client's; an unknown client has its cut's statistics, and no prior.
        """
        logits = self._part(client, cut)(channels_last(features.to(self.device)))[-1]
        return adjusted(logits.cpu(), self.counts.prior(client))

    def message_bytes(self, batch: int) -> int:
        """Return the maximum size of a message of `batch` samples, in bytes."""
        return OVERHEAD + batch * max(bytes_per_sample(shape) for shape in self.shapes.values())

    def _part(self, client: int, cut: int) -> EarlyExitNetwork:
        if not (own := self.running.of(client, cut)):
            return self.parts[cut]
        if self._last is None or self._last[0] != (client, cut):
            self._last = (client, cut), with_statistics(self.parts[cut], own).eval()
        return self._last[1]

"""Split inference without a run: the server's layers of a finished network; `remote.py` is the device's end."""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.networks import EarlyExitNetwork
from common.weights.flat import StateDict
from strategies.hetero_splitee.learner import server_part, with_statistics
from strategies.hetero_splitee.remote import OVERHEAD, bytes_per_sample


class Suffixes:
    """The layers after every cut of a finished network; parts share its parameters. Not thread-safe."""

    def __init__(
        self, network: EarlyExitNetwork, device: torch.device, statistics: Mapping[int, StateDict] | None = None
    ) -> None:
        """`network` is a whole network; `statistics` are the running statistics of cuts that have their own."""
        network, own = network.to(device).eval(), statistics or {}
        self.device, self.parts = device, {cut: server_part(network, cut) for cut in range(1, network.end)}
        self.parts |= {cut: with_statistics(part, own[cut]) for cut, part in self.parts.items() if cut in own}
        with torch.no_grad():
            x = network.example(1).to(device)
            shapes = {cut: tuple(network.features_at(x, cut).shape[1:]) for cut in self.parts}
        self.shapes: Mapping[int, tuple[int, ...]] = shapes  # cut -> shape of one sample's features

    @torch.no_grad()
    def logits(self, client: int, cut: int, features: Tensor) -> Tensor:
        """Return the last exit's logits (B, classes) of features (B, ...) at a cut, the same for every client."""
        return self.parts[cut](features.to(self.device))[-1].cpu()

    def message_bytes(self, batch: int) -> int:
        """Return the maximum size of a message of `batch` samples, in bytes."""
        return OVERHEAD + batch * max(bytes_per_sample(shape) for shape in self.shapes.values())

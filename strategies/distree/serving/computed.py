"""A stored student that torch computes."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from strategies.distree.exits.policies import ExitPolicy, Leaves
from strategies.distree.model.stored import StoredStudent
from strategies.distree.serving.service import Stopped


class TorchStudent:
    """See `service.Served`; the student's network moves to the device."""

    def __init__(self, stored: StoredStudent, device: torch.device | None = None) -> None:
        self._device = device or torch.device("cpu")
        self._stored = stored.to(self._device)
        self.run, self.number = stored.run, stored.number
        self.input_shape, self.length = stored.network.input_shape, stored.network.num_classes
        self.num_exits = len(stored.network.exit_positions)
        self.policies: Mapping[str, ExitPolicy] = stored.policies

    def classify(self, exit_index: int, features: Tensor, own: bool = False) -> Tensor:
        """Return the logits (b, classes) of this student alone, see `exits.scores.Classify`."""
        return self._stored.classify(exit_index, features, own)

    def leave(self, pixels: NDArray[np.uint8], leaves: Leaves) -> Iterator[Stopped]:
        """Yield the samples that leave at each exit."""
        x = self._stored.normalizer(torch.from_numpy(pixels).to(self._device))
        for left in self._stored.network.leave(x, leaves):
            # copied to the processor, which waits for what is queued on a GPU: times include all of it
            yield Stopped(left.exit, left.rows.cpu().numpy(), left.logits.cpu().numpy())

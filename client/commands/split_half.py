"""The device's half of split inference."""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.console import results
from common.exits import ThresholdPolicy
from common.storage.model_file import StoredModel


@dataclass(frozen=True)
class Half:
    """The device's results for a batch."""

    logits: Tensor  # (b, classes) of its exit
    features: Tensor  # (b, ...) at the cut
    stays: Tensor  # (b,) bool: confident enough
    ms: float  # milliseconds per sample


@torch.no_grad()
def device_half(stored: StoredModel, pixels: Tensor, gate: ThresholdPolicy, device: torch.device) -> Half:
    """Return the device's results for pixels, uint8 (b, C, H, W)."""
    network, normalise = stored.network.to(device), stored.normalizer.to(device)
    started = results.now(device)
    outputs = network.forward_exits(normalise(pixels.to(device)))
    stays = gate(0, outputs.logits[-1])
    ms = (results.now(device) - started) * 1000 / len(pixels)
    return Half(outputs.logits[-1], outputs.trunk, stays, ms)

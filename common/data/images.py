"""Samples as tensors: a labelled set, and the normaliser that turns it into a network's input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.data.normalising import folded
from common.devices import channels_last
from common.errors import UserError
from common.sections.data import DataConfig, constants
from common.sections.data_sets import HUB_SETS

Indices = Tensor | NDArray[np.int64]
RESIDENT_SHARE = 0.25  # of a GPU's free memory: what a set may take beside the models, with others that share it


@dataclass(frozen=True, eq=False)
class SampleSet:
    """Labelled images or texts. The inputs may be a file mapped into memory: read the rows you need with `subset`."""

    inputs: Tensor  # uint8 (N, C, H, W) pixels or int32 (N, L) token ids
    labels: Tensor  # int64 (N,)
    classes: tuple[str, ...]  # names, index = label

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (L,) of one text."""
        return tuple(self.inputs.shape[1:])

    def subset(self, indices: Indices) -> SampleSet:
        """Return a copy that holds only the samples at `indices` (n,), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.inputs.device)
        return replace(self, inputs=self.inputs[chosen], labels=self.labels[chosen])

    def to(self, device: torch.device | str) -> SampleSet:
        """Return the set on another device."""
        return replace(self, inputs=self.inputs.to(device), labels=self.labels.to(device))

    def resident(self, device: torch.device) -> SampleSet:
        """Return the set on a GPU with room for it, else as it is: copied once, rows are then picked there."""
        room = torch.cuda.mem_get_info(device)[0] * RESIDENT_SHARE if device.type == "cuda" else 0
        return self.to(device) if self.inputs.nbytes <= room else self


class Normalizer:
    """(pixel / 255 - mean) / std, folded into one multiplication and one addition.

    `mean` and `std` hold one number for all channels, or one per channel, of images in [0, 1]. Both are empty for
    texts, whose token ids stay as they are.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device | str = "cpu") -> None:
        self.mean = mean
        self.std = std
        self._scale, self._shift = (torch.from_numpy(values).to(device) for values in folded(mean, std))

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return float32 (B, C, H, W) for uint8 (B, C, H, W) on the same device, int64 (B, L) for token ids (B, L)."""
        if not self.mean:
            return inputs.to(torch.int64)
        return channels_last(inputs).to(torch.float32).mul_(self._scale).add_(self._shift)

    def to(self, device: torch.device | str) -> Normalizer:
        """Return the normaliser for batches on another device."""
        return Normalizer(self.mean, self.std, device)


def normalizer(config: DataConfig, channels: int) -> Normalizer:
    """Return the normaliser for a configuration: its own constants, else the set's known ones, else 0.5 and 0.5.

    `channels` is that of images; texts ignore it, since they have no constants.
    Raises `UserError` if the number of constants is neither 1 nor `channels`.
    """
    if config.is_text:
        return Normalizer((), ())
    known = HUB_SETS.get(config.name)
    mean = constants(config.mean) or (known.mean if known else ()) or (0.5,)
    std = constants(config.std) or (known.std if known else ()) or (0.5,)
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"data.{key} has {len(values)} constants, but the images have {channels} channel(s): "
                f"give one for all or one per channel"
            )
    return Normalizer(mean, std)

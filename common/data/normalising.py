"""Pixels as a network takes them, without torch."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def folded(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a and b (1, C, 1, 1) by which a * pixel + b is (pixel / 255 - mean) / std; C is 1 for all channels."""
    deviation = np.asarray(std, np.float64)
    scale, shift = 1 / (255 * deviation), -np.asarray(mean, np.float64) / deviation
    return scale.astype(np.float32).reshape(1, -1, 1, 1), shift.astype(np.float32).reshape(1, -1, 1, 1)


class ArrayNormalizer:
    """What `common.data.images.Normalizer` is for tensors, to the same bits."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self._texts = not mean
        self._scale, self._shift = folded(mean, std)

    def __call__(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """Return float32 (B, C, H, W) for uint8 (B, C, H, W), int64 (B, L) for token ids (B, L)."""
        if self._texts:
            return inputs.astype(np.int64)
        values = inputs.astype(np.float32)
        values *= self._scale
        values += self._shift
        return values

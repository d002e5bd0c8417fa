"""Mini-batches of sample indices."""

import torch
from torch import Tensor


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return the shuffled indices of one epoch as int64 (b,) per batch, sizes as equal as can be.

    A small remainder would be harmful: BatchNorm cannot train on one sample, and over two or three alike ones it
    multiplies gradients by hundreds where a feature map is a single pixel.
    """
    if num_samples == 0:
        return []
    number = -(-num_samples // batch_size)
    if batch_size > 1:
        number = max(1, min(number, num_samples // 2))
    return list(torch.randperm(num_samples, generator=generator).tensor_split(number))

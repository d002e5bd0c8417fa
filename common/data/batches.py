"""Mini-batches of sample indices."""

import torch
from torch import Tensor

from common.devices import send

CPU = torch.device("cpu")


def batches(num_samples: int, batch_size: int, generator: torch.Generator, device: torch.device = CPU) -> list[Tensor]:
    """Return the shuffled indices of one epoch as int64 (b,) per batch on `device`, with sizes as equal as possible.

    They reach the device in one copy: a GPU waits for none in the steps. A small last batch would do harm: BatchNorm
    cannot train on one sample, and over two or three similar ones it multiplies gradients by hundreds where a feature
    map is a single pixel.
    """
    number = batch_count(num_samples, batch_size)
    if not number:
        return []
    return list(send(torch.randperm(num_samples, generator=generator), device).tensor_split(number))


def batch_count(num_samples: int, batch_size: int) -> int:
    """Return how many batches an epoch has."""
    number = -(-num_samples // batch_size)
    return max(1, min(number, num_samples // 2)) if num_samples and batch_size > 1 else number

"""Mini-batches of sample indices."""

import torch
from torch import Tensor


def batches(num_samples: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Return the shuffled indices of one epoch as int64 (b,) per batch.

    A remainder of one sample joins the batch before it, because BatchNorm cannot train on a single one.
    """
    if num_samples == 0:
        return []
    parts = list(torch.randperm(num_samples, generator=generator).split(batch_size))
    if batch_size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts

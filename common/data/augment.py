"""Random crops and flips of a whole batch at once."""

import torch
import torch.nn.functional as F
from torch import Tensor

from common.devices import send


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """Return each image shifted by up to `padding` pixels, filled up with zeros, and mirrored or not.

    Args:
        images: (B, C, H, W), of any type; zero must be the value that padding should have.
        generator: on the CPU; each image draws its own shift and flip.
        padding: pixels on each side (4 for 32x32 images: He et al., CVPR 2016, section 4.2).
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    shift = torch.randint(2 * padding + 1, (2, count), generator=generator)
    flipped = torch.randint(2, (count, 1), generator=generator)
    shift, flipped = send(shift, images.device), send(flipped, images.device).bool()
    rows = shift[0, :, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = shift[1, :, None] + torch.where(flipped, columns.flip(0), columns)
    sample = torch.arange(count, device=images.device)
    # advanced indices around a slice put the channels last
    picked = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)

"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016) with an exit after every unit (DistrEE, 2025)."""

from typing import cast

import torch
from torch import Tensor, nn

from common.networks.base import Trunk
from common.networks.convolutions import initialise_convolutions, projection
from common.networks.heads import PreactivatedPooledLinear


class PreactivationBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; a block that changes the shape projects the activated input."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        same = before == after and stride == 1
        self.shortcut = None if same else projection(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, after, H / stride, W / stride) for x (B, before, H, W)."""
        activated = torch.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        inner = self.conv2(torch.relu(self.norm2(self.conv1(activated))))
        return cast(Tensor, shortcut + inner)


def wrn16(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return WRN-16-k: 7 units, the stem and 3 groups of 2 blocks of 16k, 32k, 64k channels, 7 exits.

    Args:
        input_shape: (C, H, W), H and W at least 4.
        width: the factor k; 0 = 1.
    """
    channels, height, breadth = input_shape
    factor = width or 1
    units: list[nn.Module] = [nn.Conv2d(channels, 16, 3, padding=1, bias=False)]
    widths = [16]
    for after, stride in ((16 * factor, 1), (32 * factor, 2), (64 * factor, 2)):
        units.append(PreactivationBlock(widths[-1], after, stride))
        units.append(PreactivationBlock(after, after, 1))
        widths += [after, after]
    for unit in units:
        initialise_convolutions(unit)
    return Trunk(units, tuple(widths), PreactivatedPooledLinear, (16, height, breadth))

"""Residual networks of basic blocks with a stem for small images (He et al., CVPR 2016)."""

from torch import nn
from torchvision.models.resnet import BasicBlock

from common.networks.base import Trunk
from common.networks.convolutions import initialise_convolutions, projection
from common.networks.heads import PooledLinear


def resnet18(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return ResNet-18 with a 3x3 stem and no max pooling: 9 units, the stem and 8 blocks.

    Args:
        input_shape: (C, H, W), H and W at least 8.
        width: channels of the stem; 0 = 64.
    """
    width = width or 64
    stages = [width, width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width, 8 * width]
    return _trunk(input_shape, width, stages)


def resnet_slim(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return a network that trains in seconds on a CPU: 5 units, the stem and 4 widening blocks.

    Args:
        input_shape: (C, H, W), from (1, 8, 8) up.
        width: channels of the stem; 0 = 16.
    """
    width = width or 16
    return _trunk(input_shape, width, [width, 2 * width, 4 * width, 8 * width])


def _trunk(input_shape: tuple[int, int, int], width: int, blocks: list[int]) -> Trunk:
    channels, height, breadth = input_shape
    units: list[nn.Module] = [
        nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
    ]
    before = width
    for after in blocks:
        units.append(_block(before, after))
        before = after
    for unit in units:
        initialise_convolutions(unit)
    return Trunk(units, (width, *blocks), PooledLinear, (width, height, breadth))


def _block(before: int, after: int) -> BasicBlock:
    """Return a basic block; one that widens also halves the map and projects the shortcut."""
    if before == after:
        return BasicBlock(before, after)
    shortcut = nn.Sequential(projection(before, after, stride=2), nn.BatchNorm2d(after))
    return BasicBlock(before, after, stride=2, downsample=shortcut)

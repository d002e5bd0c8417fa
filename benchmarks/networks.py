"""Networks that only the studies here use."""

from dataclasses import replace
from typing import cast

from torch import nn

from common.networks import NetworkSpec
from common.networks.base import Trunk
from common.networks.convnet import convnet


def convnet_batch_norm(spec: NetworkSpec) -> Trunk:
    """Return CAFEDistill's ConvNet for CIFAR-10 with batch norm after every convolution."""
    channels, height, width = spec.input_shape
    trunk = convnet((channels, height, width), spec.width)
    return replace(trunk, units=[_normalised(cast(nn.Sequential, unit)) for unit in trunk.units])


def _normalised(unit: nn.Sequential) -> nn.Sequential:
    convolution, *rest = unit
    return nn.Sequential(convolution, nn.BatchNorm2d(cast(nn.Conv2d, convolution).out_channels), *rest)

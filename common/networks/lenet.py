"""A network of LeNet-5's size (LeCun et al., 1998), for benchmarks: most of their time is not the network's."""

from torch import nn

from common.errors import UserError
from common.networks.base import Trunk
from common.networks.heads import PooledLinear


def lenet(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return 3 units: LeNet-5's convolutions with 6, 16 and 120 channels, pooled after the first two; 3 exits.

    Args:
        input_shape: (C, H, W), H and W at least 4.
        width: channels of the first convolution, the others grow with it; 0 = 6.

    Raises:
        UserError: the image is too small to be pooled twice.
    """
    channels, height, breadth = input_shape
    if min(height, breadth) < 4:
        raise UserError(
            f"network.name 'lenet' needs images of 4x4 or more, not {height}x{breadth}: "
            "set data.image-size or another network"
        )
    first = width or 6
    second, third = 16 * first // 6, 20 * first
    units: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(channels, first, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(first, second, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(second, third, 5, padding=2), nn.ReLU(inplace=True)),
    ]
    latent_shape = (first, height // 2, breadth // 2)
    return Trunk(units, (first, second, third), PooledLinear, latent_shape)

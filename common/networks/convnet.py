"""CAFEDistill's network for CIFAR-10: three plain convolution stages, an exit after each."""

from torch import nn

from common.errors import UserError
from common.networks.base import Trunk
from common.networks.heads import PooledLinear


def convnet(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return 3 units of Conv 3x3 without padding, ReLU and MaxPool 2. A latent is an image: it enters before unit 0.

    Args:
        input_shape: (C, H, W), H and W at least 22.
        width: channels of every stage; 0 = 128.

    Raises:
        UserError: the image is too small for three stages.
    """
    if min(input_shape[1:]) < 22:
        raise UserError(
            f"network.name 'convnet' needs images of 22x22 or more, not {input_shape[1]}x{input_shape[2]}: "
            "set data.image-size or another network"
        )
    width = width or 128
    channels = (input_shape[0], width, width)
    units: list[nn.Module] = [
        nn.Sequential(nn.Conv2d(before, width, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2)) for before in channels
    ]
    return Trunk(units, (width,) * 3, PooledLinear, input_shape, latent_unit=0)

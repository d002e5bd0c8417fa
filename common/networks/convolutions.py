"""What residual networks share, apart from torchvision."""

from torch import Tensor, nn
from torch.nn import functional

BLOCK = 16  # channels that oneDNN handles at once where a processor has AVX-512; 8 with AVX2


def initialise_convolutions(unit: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, as both residual papers do."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def projection(before: int, after: int, stride: int) -> nn.Conv2d:
    """Return a shortcut's 1x1 convolution without bias, (B, before, H, W) to (B, after, H / stride, W / stride)."""
    kind = SubsampledConv2d if stride > 1 and before < BLOCK else nn.Conv2d
    return kind(before, after, 1, stride=stride, bias=False)


class SubsampledConv2d(nn.Conv2d):
    """A 1x1 convolution that leaves out pixels before it computes, not while it does.

    oneDNN's gradient of the weights writes beyond its memory where a 1x1 convolution has a stride, fewer input channels
    than a block, and channels last (https://github.com/uxlfoundation/oneDNN/issues/6035): the process crashes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return what `nn.Conv2d` returns."""
        across, along = self.stride
        return functional.conv2d(input[:, :, ::across, ::along], self.weight, self.bias)

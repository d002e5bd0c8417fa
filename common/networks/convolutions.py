"""What residual networks share, apart from torchvision."""

from torch import nn


def initialise_convolutions(unit: nn.Module) -> None:
    """Draw every convolution's weights from He's normal distribution, as both residual papers do."""
    for module in unit.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

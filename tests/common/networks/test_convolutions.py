import subprocess
import sys

import pytest
import torch
from torch import nn

from common.devices import channels_last
from common.networks import NetworkSpec, build
from common.networks.convolutions import SubsampledConv2d, projection

# in a process of its own, which a write beyond its memory may end
GRADIENTS = """
import torch
from common.devices import channels_last
from common.networks.convolutions import projection
kept = []
for channels in range(1, 17):
    module = projection(channels, 16, stride=2)
    x = channels_last(torch.randn(16, channels, 8, 8))
    planes, by_planes = x.contiguous().double(), projection(channels, 16, stride=2).double()
    by_planes.load_state_dict(module.state_dict())
    by_planes(planes).square().mean().backward()
    for turn in range(20):
        module.zero_grad()
        module(x).square().mean().backward()
        kept.append(torch.zeros(turn + 1))  # blocks of memory beside the convolution's
    assert torch.allclose(module.weight.grad.double(), by_planes.weight.grad, atol=1e-6), channels
"""


def test_gradients_of_narrow_projections_are_right_and_stay_in_their_memory() -> None:
    done = subprocess.run([sys.executable, "-c", GRADIENTS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("channels", [1, 3, 8, 15])
def test_narrow_projections_answer_as_any_convolution(channels: int) -> None:
    narrow = projection(channels, 2 * channels, stride=2)
    assert type(narrow) is SubsampledConv2d
    plain = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    plain.load_state_dict(narrow.state_dict())
    x = channels_last(torch.randn(2, channels, 7, 8))
    torch.testing.assert_close(narrow(x), plain(x))


def test_other_projections_are_torchs() -> None:
    assert type(projection(16, 32, stride=2)) is type(projection(3, 6, stride=1)) is nn.Conv2d


@pytest.mark.parametrize("name", ["resnet_slim", "resnet18", "wrn16"])
def test_networks_have_no_narrow_convolution_with_a_stride_that_is_torchs(name: str) -> None:
    modules = build(NetworkSpec(name, 10, (3, 8, 8), width=1), 0).modules()
    strided = [m for m in modules if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1) and m.stride != (1, 1)]
    assert strided
    assert all(isinstance(m, SubsampledConv2d) or m.in_channels >= 16 for m in strided)

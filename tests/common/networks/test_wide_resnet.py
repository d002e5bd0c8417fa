from itertools import accumulate

import pytest
import torch

from common.networks import NetworkSpec, build
from common.networks.wide_resnet import PreactivationBlock


def test_wrn16_1_has_the_published_parameters_per_unit() -> None:
    network = build(NetworkSpec("wrn16", 10, (3, 32, 32)), 0)
    units = [sum(p.numel() for p in unit.parameters()) for unit in network.units.values()]
    assert list(accumulate(units)) == [432, 5_104, 9_776, 24_208, 42_768, 100_304, 174_288]
    assert network.exit_positions == (1, 2, 3, 4, 5, 6, 7)


@pytest.mark.parametrize(("factor", "widths"), [(1, (16, 32, 64)), (4, (64, 128, 256))])
def test_factor_widens_the_groups_but_not_the_stem(factor: int, widths: tuple[int, ...]) -> None:
    network = build(NetworkSpec("wrn16", 10, (3, 8, 8), width=factor), 0)
    assert network.architecture.widths == (16, *(width for width in widths for _ in range(2)))


@torch.no_grad()
def test_block_of_the_same_shape_adds_to_its_input() -> None:
    block = PreactivationBlock(4, 4, 1).eval()
    block.conv2.weight.zero_()
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x)


@torch.no_grad()
def test_block_of_another_shape_projects_the_activated_input() -> None:
    block = PreactivationBlock(2, 4, 2).eval()
    block.conv2.weight.zero_()
    x = torch.randn(2, 2, 6, 6)
    assert torch.equal(block(x), block.shortcut(torch.relu(block.norm1(x))))

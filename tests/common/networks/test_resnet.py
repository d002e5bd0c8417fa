from itertools import accumulate

import pytest
import torch

from common.networks import NetworkSpec, build

CIFAR = NetworkSpec("resnet18", 10, (3, 32, 32))


def test_resnet18_has_the_published_parameters_per_unit() -> None:
    network = build(CIFAR, 0)
    units = [sum(p.numel() for p in unit.parameters()) for unit in network.units.values()]
    assert list(accumulate(units)) == [
        1_856,
        75_840,
        149_824,
        379_968,
        675_392,
        1_594_432,
        2_775_104,
        6_448_192,
        11_168_832,
    ]
    heads = {key: sum(p.numel() for p in head.parameters()) for key, head in network.exits.items()}
    assert heads == {"3": 650, "5": 1_290, "7": 2_570, "9": 5_130}


@torch.no_grad()
def test_resnet18_halves_the_map_at_each_wider_stage() -> None:
    network = build(CIFAR, 0).eval()
    x = torch.zeros(1, 3, 32, 32)
    shapes = [tuple(network.features_at(x, cut).shape[1:]) for cut in (1, 3, 5, 7, 9)]
    assert shapes == [(64, 32, 32), (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]


@pytest.mark.parametrize("input_shape", [(1, 8, 8), (3, 32, 32)])
def test_resnet_slim_has_four_tiers(input_shape: tuple[int, int, int]) -> None:
    network = build(NetworkSpec("resnet_slim", 10, input_shape), 0)
    assert network.tier_positions == (2, 3, 4, 5)
    assert network.architecture.widths == (16, 16, 32, 64, 128)
    assert len(network(torch.zeros(2, *input_shape))) == 4


def test_resnet_slim_learns() -> None:
    network = build(NetworkSpec("resnet_slim", 2, (1, 8, 8), width=4), 0)
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(32) % 2
    x = torch.randn(32, 1, 8, 8, generator=generator)
    x[:, :, :, :4] += y.view(-1, 1, 1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(20):
        optimizer.zero_grad()
        sum(torch.nn.functional.cross_entropy(z, y) for z in network(x)).backward()
        optimizer.step()
    accuracy = [(z.argmax(1) == y).float().mean().item() for z in network(x)]
    assert min(accuracy) > 0.9

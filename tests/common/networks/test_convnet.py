from itertools import accumulate

import pytest

from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table

CIFAR = NetworkSpec("convnet", 10, (3, 32, 32))


def test_exit_costs_match_the_published_ones() -> None:
    macs = list(accumulate(unit.macs for unit in cost_table(build(CIFAR, 0)).units))
    assert macs[-1] == 30_389_760
    assert [round(m / macs[-1], 3) for m in macs] == [0.102, 0.922, 1.0]


def test_latent_of_convnet_is_an_image() -> None:
    network = build(CIFAR, 0)
    assert (network.latent_unit, network.latent_shape) == (0, (3, 32, 32))


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="22x22 or more, not 21x32"):
        build(NetworkSpec("convnet", 10, (3, 21, 32)), 0)

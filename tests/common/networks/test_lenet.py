import pytest

from common.errors import UserError
from common.networks import NetworkSpec, build


def test_lenet_has_the_published_size() -> None:
    network = build(NetworkSpec("lenet", 10, (1, 28, 28)), 0)
    assert sum(p.numel() for p in network.units.parameters()) == 156 + 2_416 + 48_120
    assert network.exit_positions == (1, 2, 3)


def test_too_small_images_are_refused() -> None:
    with pytest.raises(UserError, match="4x4 or more, not 3x8"):
        build(NetworkSpec("lenet", 10, (1, 3, 8)), 0)

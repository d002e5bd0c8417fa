import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build
from common.networks.vit import PatchEmbedding


def test_deit_tiny_has_the_published_shape() -> None:
    network = build(NetworkSpec("deit_tiny", 100, (3, 224, 224)), 0)
    # timm's 5,717,416 less the final norm (384) and the 1000-class head (193,000).
    assert sum(p.numel() for p in network.units.parameters()) == 5_717_416 - 384 - 193_000
    assert network.exit_positions == (4, 7, 10, 13)
    assert network.latent_shape == (197, 192)
    assert {unit.num_heads for name, unit in network.units.items() if name != "0"} == {3}
    heads = [sum(p.numel() for p in head.parameters()) for head in network.exits.values()]
    assert heads == [2 * 192 + 192 * 100 + 100] * 4


def test_class_token_comes_before_the_patches_row_by_row() -> None:
    embedding = PatchEmbedding((1, 4, 6), patch=2, width=1)
    with torch.no_grad():
        embedding.projection.weight.fill_(0.25)
        embedding.projection.bias.zero_()
        embedding.positions.zero_()
        embedding.class_token.fill_(7.0)
        blocks = torch.arange(6.0).reshape(1, 1, 2, 3)
        tokens = embedding(blocks.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert tokens.flatten().tolist() == [7, 0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (NetworkSpec("deit_tiny", 10, (3, 200, 224)), "200x224 do not fit deit_tiny: its patches are 16x16"),
        (NetworkSpec("vit_small32", 10, (3, 32, 32), width=40), r"network\.width is 40, .* heads of 16"),
    ],
)
def test_sizes_that_are_no_multiples_are_refused(spec: NetworkSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(spec, 0)

"""Exits that keep the means of a map's squares: where they are, what they cost, that nothing else changes."""

from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table
from common.networks.heads import Squares
from common.networks.squares import squares_after

WRN = NetworkSpec("wrn16", 10, (3, 32, 32))


def of(spec: NetworkSpec) -> list[Squares | None]:
    return list(squares_after(list(build(spec, 0).units.values()), spec.input_shape))


def test_squares_of_wrn16_are_those_of_an_average_pool_of_8() -> None:
    assert of(WRN) == 3 * [Squares((8, 8), 16)] + 2 * [Squares((8, 8), 4)] + 2 * [Squares((8, 8), 1)]


def test_squares_follow_the_images_size() -> None:
    assert of(replace(WRN, input_shape=(1, 8, 8)))[::3] == [Squares((2, 2), 16), Squares((2, 2), 4), Squares((2, 2), 1)]
    assert of(replace(WRN, input_shape=(3, 18, 32)))[::3] == [
        Squares((5, 8), 16), Squares((5, 8), 4), Squares((5, 8), 1),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["convnet", "lenet", "resnet18", "resnet_slim", "wrn16"])
@torch.no_grad()
def test_only_the_heads_first_layer_grows(name: str) -> None:
    plain, divided = (build(replace(WRN, name=name, pooling=pooling), 3).eval() for pooling in ("mean", "squares"))
    ours, theirs = divided.state_dict(), plain.state_dict()
    assert list(ours) == list(theirs)
    for key, value in theirs.items():
        if key.startswith("exits.") and key.endswith("linear.weight"):
            squares = divided.architecture.squares[int(key.split(".")[1]) - 1]
            assert squares is not None
            assert ours[key].shape == (10, squares.number * value.shape[1])
        elif not key.endswith("linear.bias"):
            assert torch.equal(ours[key], value)
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    if name == "convnet":
        return  # its maps of 15x15 and 6x6 have smaller squares at their edges
    features = divided.forward_exits(x).features
    for feature, mean in zip(features, plain.forward_exits(x).features, strict=True):
        torch.testing.assert_close(feature.reshape(3, mean.shape[1], -1).mean(-1), mean)


def test_what_squares_cost_in_a_wrn16() -> None:
    costs = [cost_table(build(replace(WRN, pooling=pooling), 0)) for pooling in ("mean", "squares")]
    added = 15 * 3 * 16 + 3 * 2 * 32  # means, of the three widest maps and of the two next ones
    assert costs[1].cut_macs(7) - costs[0].cut_macs(7) == 10 * added
    assert costs[1].cut_parameters(7) - costs[0].cut_parameters(7) == 10 * added


@torch.no_grad()
def test_parts_and_heads_made_on_demand_divide_the_same_maps() -> None:
    spec = replace(WRN, input_shape=(3, 16, 16), exits=(2, 7), norm="group", pooling="squares")
    whole = build(spec, 3).eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for cut in range(1, 7):
        part = whole.prefix_units(cut)
        assert torch.equal(whole.suffix(cut)(part.features_at(x, cut))[-1], whole(x)[-1])
        assert part.exits[str(cut)].squares == whole.architecture.squares[cut - 1]
    everywhere = build(replace(spec, exits=()), 3)
    assert torch.equal(everywhere.exits["4"].linear.weight, whole.prefix_units(4).exits["4"].linear.weight)


def test_tokens_and_texts_have_no_squares() -> None:
    vit = build(NetworkSpec("vit_small32", 10, (3, 32, 32), pooling="squares"), 0)
    assert set(vit.architecture.squares) == {None}
    text = NetworkSpec("transformer4", 4, (16,), vocabulary=50)
    for spec in (NetworkSpec("vit_small32", 10, (3, 32, 32)), text):
        plain, asked = build(spec, 0).state_dict(), build(replace(spec, pooling="squares"), 0).state_dict()
        assert all(torch.equal(value, asked[key]) for key, value in plain.items())


def test_the_pooling_travels_and_must_be_known() -> None:
    assert "pooling" not in WRN.plain()
    divided = replace(WRN, pooling="squares")
    assert NetworkSpec.from_json(divided.to_json()) == divided
    with pytest.raises(UserError, match="the exits' pooling is 'max', must be one of mean, squares"):
        build(replace(WRN, pooling="max"), 0)

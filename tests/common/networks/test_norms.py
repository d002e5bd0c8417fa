"""GroupNorm in every network of convolutions: how many groups, the same weights otherwise, no running statistics."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table
from common.networks.norms import group_count, normalised_by_groups, replaced
from common.sections.general import NetworkSection
from common.sections.networks import BACKBONES
from common.settings import read_section

PLAIN = {name: NetworkSpec(name, 10, (3, 32, 32)) for name in ("convnet", "lenet", "resnet18", "resnet_slim", "wrn16")}


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(2, 1), (6, 1), (8, 1), (15, 1), (16, 2), (24, 3), (36, 4), (53, 1), (64, 8), (82, 2), (92, 4), (120, 15),
     (128, 16), (256, 32), (512, 32), (260, 26)],
)  # fmt: skip
def test_groups_divide_the_channels_and_have_eight_or_more(channels: int, groups: int) -> None:
    assert group_count(channels) == groups
    assert channels % groups == 0
    assert groups == 1 or channels // groups >= 8


@pytest.mark.parametrize("name", PLAIN)
def test_every_network_of_convolutions_has_groups_and_nothing_else_changes(name: str) -> None:
    plain, grouped = build(PLAIN[name], 3), build(replace(PLAIN[name], norm="group"), 3)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in grouped.modules())
    assert not list(grouped.buffers())
    before = {key for key, module in plain.named_modules() if isinstance(module, nn.BatchNorm2d)}
    after = {key: module for key, module in grouped.named_modules() if isinstance(module, nn.GroupNorm)}
    if before:
        assert after.keys() == before
    else:
        assert len(after) == 3  # after each of the three convolutions
    for norm in after.values():
        assert norm.num_groups == group_count(norm.num_channels)
    convolutions = [[m.weight for m in network.modules() if isinstance(m, nn.Conv2d)] for network in (plain, grouped)]
    assert all(torch.equal(one, two) for one, two in zip(*convolutions, strict=True))
    assert [cost_table(n).macs(0) for n in (plain, grouped)] == [cost_table(plain).macs(0)] * 2


@pytest.mark.parametrize("name", PLAIN)
@torch.no_grad()
def test_a_samples_logits_do_not_depend_on_its_batch(name: str) -> None:
    network = build(replace(PLAIN[name], norm="group"), 3).train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    whole, alone = network(x), network(x[:1])
    assert len(whole) == len(alone) == len(network.exit_positions)
    for many, one in zip(whole, alone, strict=True):
        torch.testing.assert_close(many[:1], one)
    assert all(torch.equal(one, two) for one, two in zip(network(x), network.eval()(x), strict=True))


@torch.no_grad()
def test_parts_fit_together_and_new_heads_have_groups_too() -> None:
    network = build(NetworkSpec("wrn16", 10, (3, 16, 16), exits=(7,), norm="group"), 3).eval()
    x = network.example(2)
    for cut in range(1, network.end):
        assert torch.equal(network.suffix(cut)(network.features_at(x, cut))[-1], network(x)[-1])
        head = network.prefix_units(cut).exits[str(cut)]
        assert isinstance(head.norm, nn.GroupNorm)


def test_groups_are_those_of_torch() -> None:
    x = torch.randn(2, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    norm = replaced(nn.BatchNorm2d(16))
    halves = x.view(2, 2, -1)
    expected = (halves - halves.mean(2, keepdim=True)) / (halves.var(2, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected.view_as(x))


def test_spec_carries_the_norm_only_where_it_is_not_the_default() -> None:
    spec = PLAIN["resnet_slim"]
    assert "norm" not in spec.plain()
    grouped = replace(spec, norm="group")
    assert grouped.plain()["norm"] == "group"
    assert NetworkSpec.from_json(grouped.to_json()) == grouped


@pytest.mark.parametrize("name", ["deit_tiny", "transformer4", "vit_small32"])
def test_transformers_keep_their_norm(name: str) -> None:
    message = f"network.norm is 'group', but network.name '{name}' is a transformer and keeps its LayerNorm"
    texts = BACKBONES[name].texts
    spec = NetworkSpec(name, 10, (8,) if texts else (3, 32, 32), vocabulary=9 if texts else 0, norm="group")
    with pytest.raises(UserError, match=message) as raised:
        build(spec, 0)
    assert str(raised.value).endswith("set it to batch, or choose one of convnet, lenet, resnet18, resnet_slim, wrn16")
    assert read_section(NetworkSection, name=name, norm="group").problems == [str(raised.value)]
    assert read_section(NetworkSection, name=name).problems == []


def test_what_has_nothing_to_replace_is_refused() -> None:
    with pytest.raises(UserError, match=r"'mine\.nets:dense' has no batch norm to replace: set network\.norm=batch"):
        normalised_by_groups([nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))], "mine.nets:dense")
    with pytest.raises(UserError, match=r"network\.norm is 'layer', must be one of batch, group"):
        build(replace(PLAIN["lenet"], norm="layer"), 0)

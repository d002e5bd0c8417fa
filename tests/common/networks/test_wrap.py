"""Modules of other projects as trunks: torchvision's and timm's."""

import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from common.errors import UserError
from common.networks import NetworkSpec, build, check_outside, cost_table
from common.networks.heads import ClassTokenLinear, MeanLinear, PooledLinear
from common.networks.wrap import stages, trunk_of

README = Path(__file__).resolve().parents[3] / "common" / "networks" / "README.md"
TIMM = """
import timm
import torch
from torch import nn
from common.networks.wrap import stages, trunk_of

def resnet(spec):
    model = timm.create_model("resnet10t", features_only=True, in_chans=spec.input_shape[0])
    return trunk_of(stages(model), spec.input_shape, exits=(2, 3, 4, 5))

def mobilenet(spec):
    model = timm.create_model("mobilenetv3_small_050", in_chans=spec.input_shape[0])
    return trunk_of([nn.Sequential(model.conv_stem, model.bn1), *model.blocks], spec.input_shape)

class Stem(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.patches, self.class_token, self.positions = model.patch_embed, model.cls_token, model.pos_embed

    def forward(self, x):
        x = self.patches(x)
        return torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.positions

def vit(spec):
    model = timm.create_model("vit_tiny_patch16_224", img_size=spec.input_shape[1], patch_size=8, depth=4)
    return trunk_of([Stem(model), *model.blocks], spec.input_shape, exits=(3, 5))

def swin(spec):
    options = {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1, 2, 1)}
    model = timm.create_model("swin_tiny_patch4_window7_224", **options)
    return trunk_of([model.patch_embed, *model.layers], spec.input_shape, pool="mean")
"""


@pytest.mark.parametrize(
    ("name", "exits", "head"),
    [
        ("resnet", (2, 3, 4, 5), PooledLinear),
        ("mobilenet", (1, 2, 3, 4, 5, 6, 7), PooledLinear),
        ("vit", (3, 5), ClassTokenLinear),
        ("swin", (1, 2, 3, 4, 5), MeanLinear),
    ],
)
def test_timm_network_keeps_the_contract(plugin, name, exits, head):
    pytest.importorskip("timm")
    size = 64 if name == "swin" else 32
    plugin("mine_timm", TIMM)
    spec = NetworkSpec(f"mine_timm:{name}", 4, (3, size, size))
    check_outside(spec, 1)
    network = build(spec, 1).eval()
    assert network.exit_positions == exits
    assert isinstance(network.exits[str(exits[0])], head)
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = network(x)
        for cut in range(1, len(network.units)):
            assert torch.equal(network.suffix(cut)(network.features_at(x, cut))[-1], expected[-1])
        left = network.infer(x, lambda index, logits: torch.tensor([True, False])[: len(logits)] if index == 0 else
                             torch.zeros(len(logits), dtype=torch.bool))  # fmt: skip
        torch.testing.assert_close(left.logits, torch.stack([expected[0][0], expected[-1][1]]))
    costs = cost_table(network)
    assert costs.macs(0) < costs.macs(len(exits) - 1)


def test_readme_network_keeps_the_contract(plugin):
    pytest.importorskip("timm")
    (body,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    plugin("mine_readme", body)
    check_outside(NetworkSpec("mine_readme:resnet", 3, (1, 16, 16)), 1)


def test_sequential_becomes_units():
    blocks = nn.Sequential(OrderedDict(a=nn.Conv2d(1, 2, 3), b=nn.Conv2d(2, 5, 3)))
    trunk = trunk_of(blocks, (1, 8, 8))
    assert trunk.units == list(blocks)
    assert trunk.widths == (2, 5)
    assert (trunk.head, trunk.latent_shape, trunk.latent_unit, trunk.exits) == (PooledLinear, (2, 6, 6), 1, ())
    assert all(unit.training for unit in trunk.units)


def test_single_block_takes_latents_at_its_input():
    trunk = trunk_of([nn.Conv2d(1, 2, 3)], (1, 8, 8))
    assert (trunk.latent_shape, trunk.latent_unit) == ((1, 8, 8), 0)


@pytest.mark.parametrize(
    ("block", "pool", "head", "width"),
    [
        (nn.Identity(), None, PooledLinear, 3),
        (nn.Identity(), "mean", MeanLinear, 8),
        (nn.Flatten(2), None, ClassTokenLinear, 64),
        (nn.Flatten(2), "mean", MeanLinear, 64),
        (nn.Flatten(), None, MeanLinear, 192),
    ],
)
def test_feature_follows_from_the_shape_or_the_choice(block, pool, head, width):
    trunk = trunk_of([block], (3, 8, 8), pool=pool)
    assert (trunk.head, trunk.widths) == (head, (width,))
    assert trunk.head(width, 2).pooled(block(torch.ones(2, 3, 8, 8))).shape == (2, width)


def test_texts_come_as_token_ids():
    trunk = trunk_of([nn.Embedding(10, 4), nn.Linear(4, 6)], (5,), vocabulary=10, pool="mean")
    assert trunk.widths == (4, 6)


def test_statistics_do_not_change_while_shapes_are_found():
    norm = nn.BatchNorm2d(1)
    trunk_of([norm], (1, 8, 8))
    assert int(norm.num_batches_tracked) == 0


def test_mean_is_over_all_between_batch_and_last_dimension():
    head = MeanLinear(2, 3)
    assert head.pooled(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]])).tolist() == [[2.0, 4.0]]
    assert head.pooled(torch.ones(2, 3, 4, 2)).tolist() == [[1.0, 1.0]] * 2
    assert head.pooled(torch.tensor([[1.0, 2.0]])).tolist() == [[1.0, 2.0]]
    assert head(head.pooled(torch.ones(5, 4, 2))).shape == (5, 3)


def test_model_without_named_stages_is_refused():
    with pytest.raises(UserError, match="ResNet is not a chain of named modules with feature maps"):
        stages(torchvision.models.resnet18())


def test_block_that_returns_no_tensor_is_refused():
    class Two(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match="block 1 returns tuple, must return one tensor"):
        trunk_of([nn.Identity(), Two()], (1, 8, 8))

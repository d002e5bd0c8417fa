"""Networks of a function that `network.name` names: they keep the contract, or are refused with the reason."""

import json
from dataclasses import replace

import pytest
import torch

from common.devices import channels_last
from common.errors import UserError
from common.networks import NetworkSpec, build, check_outside, cost_table, width_of, without_early_exits
from common.sections.networks import input_mistake, position_mistakes, weight_mistakes

HEAD = """
import random
import torch
from torch import nn
from common.networks.base import Trunk
from common.networks.heads import PooledLinear
from common.networks.wrap import trunk_of

def conv(before, after, **options):
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(**options))

"""
NET = """
def net(spec):
    width = spec.width or 4
    blocks = [conv(spec.input_shape[0], width), conv(width, width, inplace=True), conv(width, 2 * width)]
    return trunk_of(blocks, spec.input_shape, exits=(2, 3))
"""
SPEC = NetworkSpec("mine_net:net", 3, (1, 8, 8))


@pytest.fixture
def mine(plugin):
    """Make the module `mine_net` with this body."""
    return lambda body=NET: plugin("mine_net", HEAD + body)


def test_function_gets_the_spec_and_the_network_keeps_the_contract(mine):
    mine()
    check_outside(SPEC, 1)
    network = build(SPEC, 1).eval()
    assert network.exit_positions == (2, 3)
    assert network.tier_positions == (2, 3)
    assert network.architecture.widths == (4, 4, 8)
    assert build(replace(SPEC, width=6), 1).architecture.widths == (6, 6, 12)
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        expected = network(x)
        for cut in (1, 2):
            features = network.features_at(x, cut)
            assert torch.equal(network.suffix(cut)(features)[-1], expected[-1])
        assert torch.equal(network.prefix(1)(x)[0], expected[0])
        assert torch.equal(network.forward_exits(network.features_at(x, 1), latent=True).logits[1], expected[1])
    assert set(network.prefix(1).state_dict()) < set(network.state_dict())
    assert cost_table(network).tier_parameters(2) == sum(p.numel() for p in network.parameters())
    assert without_early_exits(SPEC).exits == (3,)


def test_same_seed_gives_same_bits_and_the_global_state_stays(mine):
    mine()
    torch.manual_seed(7)
    one = build(SPEC, 1).state_dict()
    after = torch.rand(3)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), after)
    assert all(torch.equal(value, one[key]) for key, value in build(SPEC, 1).state_dict().items())
    assert not torch.equal(build(SPEC, 2).state_dict()["units.0.0.weight"], one["units.0.0.weight"])


def test_only_the_name_is_in_the_spec_that_travels(mine):
    mine()
    assert json.loads(SPEC.to_json())["name"] == "mine_net:net"
    assert NetworkSpec.from_json(SPEC.to_json()) == SPEC


def test_exits_and_tiers_are_checked_against_the_trunk(mine):
    mine()
    assert build(replace(SPEC, exits=(1, 2, 3), tiers=(1, 3)), 1).tier_positions == (1, 3)
    for changes, message in (
        ({"exits": (1, 2)}, r"network\.exits is 1,2: .* end with 3"),
        ({"tiers": (1, 3)}, "end with 2"),
    ):
        with pytest.raises(UserError, match=message):
            build(replace(SPEC, **changes), 1)


VIEW = """
class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.map, self.linear = conv(3, 4), nn.Linear(4 * 8 * 8, 5)

    def forward(self, x):
        return self.linear(self.map(x).view(len(x), -1))

def net(spec):
    return trunk_of([nn.Sequential(Flat()), nn.Linear(5, 5)], spec.input_shape)
"""


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_units_may_view_maps_whatever_lies_last_in_memory(mine, norm):
    mine(VIEW)
    network, x = build(replace(SPEC, input_shape=(3, 8, 8), norm=norm), 1), torch.randn(5, 3, 8, 8)
    for part in (network, network.prefix_units(1)):
        assert torch.equal(part(channels_last(x))[0], network(x)[0])


def test_trunk_without_exits_has_one_after_every_unit(mine):
    mine("def net(spec):\n    return trunk_of([conv(1, 2), conv(2, 3)], spec.input_shape)\n")
    assert build(SPEC, 1).exit_positions == (1, 2)


def test_what_is_known_before_the_call_is_checked_before_it():
    assert position_mistakes("a.b:c", (), ()) == []
    assert position_mistakes("a.b:c", (2, 9), (1, 2)) == []
    assert len(position_mistakes("a.b:c", (3, 2), ())) == 1
    assert len(position_mistakes("a.b:c", (), (2, 1))) == 1
    assert len(position_mistakes("a.b:c", (2, 9), (1, 3))) == 1
    assert input_mistake("a.b:c", texts=True) == input_mistake("a.b:c", texts=False) == ""
    assert weight_mistakes("a.b:c", 2, "weights.safetensors") == []


def test_width_has_to_be_given_where_it_is_scaled(mine):
    mine()
    assert width_of(replace(SPEC, width=6)) == 6
    with pytest.raises(UserError, match=r"network\.width is 0, but network\.name 'mine_net:net' has no width known"):
        width_of(SPEC)


BUILT = {  # refused wherever the network is built
    "error": ("def net(spec):\n    raise KeyError('x')\n", "'mine_net:net' fails: KeyError: 'x'"),
    "other type": ("def net(spec):\n    return conv(1, 2)\n", "it returns Sequential, must return common.networks"),
    "no units": ("def net(spec):\n    return Trunk([], (), PooledLinear, (1,))\n", "its units must be torch modules"),
    "no modules": ("def net(spec):\n    return Trunk([len], (1,), PooledLinear, (1,))\n", "its units must be torch"),
    "widths": (
        "def net(spec):\n    return Trunk([conv(1, 2)], (2, 3), PooledLinear, (1, 8, 8), 0)\n", "2 widths for 1 units",
    ),
    "latent unit": (
        "def net(spec):\n    return Trunk([conv(1, 2)], (2,), PooledLinear, (1, 8, 8))\n", "its latent unit is 1, mus",
    ),
    "dtype": (
        "def net(spec):\n    return Trunk([conv(1, 2).double()], (2,), PooledLinear, (1, 8, 8), 0)\n",
        r"0\.weight of unit 0 is torch\.float64: give float32",
    ),
    "shared unit": (
        "def net(spec):\n    c = conv(1, 1)\n    return trunk_of([c, c], spec.input_shape)\n",
        r"0\.weight of unit 0 and 0\.weight of unit 1 are one tensor",
    ),
    "blocks": (
        "def net(spec):\n    return trunk_of([conv(1, 2), conv(3, 4)], spec.input_shape)\n", r"block 1 does not take",
    ),
}  # fmt: skip
CHECKED = {  # refused by the check before a run
    "chain": (
        "def net(spec):\n    return Trunk([conv(1, 2), conv(3, 4)], (2, 4), PooledLinear, (2, 8, 8))\n",
        r"unit 1 does not take what unit 0 returns, \(3, 2, 8, 8\)",
    ),
    "input": (
        "def net(spec):\n    return Trunk([conv(3, 2)], (2,), PooledLinear, (1, 8, 8), 0)\n",
        "unit 0 does not take the input",
    ),
    "width": (
        "def net(spec):\n    return Trunk([conv(1, 2), conv(2, 4)], (2, 2), PooledLinear, (2, 8, 8))\n",
        r"an exit after unit 1 does not take \(3, 4, 8, 8\)",
    ),
    "latent shape": (
        "def net(spec):\n    return Trunk([conv(1, 2), conv(2, 4)], (2, 4), PooledLinear, (2, 4, 4))\n",
        r"its latent shape is \(2, 4, 4\), but unit 1 takes \(2, 8, 8\)",
    ),
    "head": (
        "def net(spec):\n    return Trunk([nn.Flatten()], (64,), PooledLinear, (1, 8, 8), 0)\n",
        "an exit after unit 0 does not take",
    ),
    "two tensors": (
        "class Two(nn.Module):\n    def forward(self, x):\n        return x, x\n"
        "def net(spec):\n    return Trunk([Two()], (1,), PooledLinear, (1, 8, 8), 0)\n",
        "unit 0 returns tuple, must be one tensor",
    ),
    "names": (
        "calls = []\ndef net(spec):\n    calls.append(0)\n"
        "    return trunk_of([nn.Sequential(*[nn.Conv2d(1, 1, 1) for _ in calls])], spec.input_shape)\n",
        "two calls give other names or shapes",
    ),
    "one module": (
        "unit = conv(1, 2)\ndef net(spec):\n    return trunk_of([unit], spec.input_shape)\n",
        r"two calls return the same tensor for units\.0\.0\.weight",
    ),
    "own randomness": (
        "def net(spec):\n    c = conv(1, 2)\n    c[0].bias.data.fill_(random.random())\n"
        "    return trunk_of([c], spec.input_shape)\n",
        r"two calls with one seed give other weights for units\.0\.0\.bias",
    ),
    "in place": (
        "def net(spec):\n    return trunk_of([nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True)], spec.input_shape)\n",
        "unit 1 changes its input in place",
    ),
    "memory": (
        "class Sum(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.total = 0.0\n"
        "    def forward(self, x):\n        self.total += 1\n        return x + self.total\n"
        "def net(spec):\n    return trunk_of([conv(1, 2), Sum()], spec.input_shape)\n",
        "unit 1 gives another result for the same input",
    ),
    "counter": (
        "class Count(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.register_buffer('seen', torch.tensor(0))\n"
        "    def forward(self, x):\n        self.seen += 1\n        return x * 1\n"
        "def net(spec):\n    return trunk_of([conv(1, 2), Count()], spec.input_shape)\n",
        r"units\.1\.seen changes while the network only predicts",
    ),
    "no gradient": (
        "class Detach(nn.Module):\n    def forward(self, x):\n        y = torch.sigmoid(x)\n"
        "        return y.mul_(2) if self.training else y\n"
        "def net(spec):\n    return trunk_of([conv(1, 2), Detach()], spec.input_shape)\n",
        "cannot be trained: RuntimeError",
    ),
}  # fmt: skip


@pytest.mark.parametrize("exits", ["(2, 1, 3)", "(2, 2, 3)", "(0, 3)", "(2, 7)", "(1, 2)"])
def test_exits_of_a_function_must_rise_to_its_last_unit(mine, exits):
    mine(NET.replace("exits=(2, 3)", f"exits={exits}"))
    with pytest.raises(UserError, match=r"its exits are \(.*\), must rise from 1 or more to its number of units, 3"):
        build(SPEC, 1)


@pytest.mark.parametrize(("body", "message"), BUILT.values(), ids=BUILT)
def test_function_that_makes_no_trunk_is_refused(mine, body, message):
    mine(body)
    with pytest.raises(UserError, match=message):
        build(SPEC, 1)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("float('inf')", r"weights are not finite: units\.0\.limit has inf: .* persistent=False"),
        ("5000.0", r"weights out of range: units\.0\.limit has 5000: "),
        ("-1", r"counters out of range: units\.0\.limit has -1: "),
    ],
)
def test_values_that_no_client_could_send_are_refused(mine, value, message):
    unit = "def net(spec):\n    unit = conv(1, 2)\n    unit.register_buffer('limit', torch.tensor([{}]){})\n"
    rest = "    return trunk_of([unit], spec.input_shape)\n"
    mine(unit.format(value, "") + rest)
    with pytest.raises(UserError, match=message):
        check_outside(SPEC, 1)
    mine(unit.format(value, ", persistent=False") + rest)
    check_outside(SPEC, 1)


@pytest.mark.parametrize(("body", "message"), CHECKED.values(), ids=CHECKED)
def test_trunk_that_breaks_the_contract_is_refused(mine, body, message):
    mine(body)
    build(SPEC, 1)
    with pytest.raises(UserError, match=message):
        check_outside(SPEC, 1)


def test_check_passes_over_the_app_s_own_networks():
    check_outside(NetworkSpec("lenet", 3, (1, 8, 8)), 1)

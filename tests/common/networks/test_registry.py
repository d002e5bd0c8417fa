import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, backbones, build, width_of
from common.sections.networks import BACKBONES, Backbone, unit_count

SLIM = NetworkSpec("resnet_slim", 10, (1, 8, 8))


def test_spec_survives_json() -> None:
    spec = replace(SLIM, exits=(1, 5), tiers=(1, 2), ensemble=0.2, width=8)
    assert NetworkSpec.from_json(spec.to_json()) == spec
    with pytest.raises(UserError, match="unknown network field colour"):
        NetworkSpec.from_json('{"name": "lenet", "colour": 1}')
    with pytest.raises(UserError, match="num_classes"):
        NetworkSpec.from_json('{"name": "lenet"}')


def test_same_seed_gives_the_same_bits_and_keeps_global_state(tiny: NetworkSpec) -> None:
    before = torch.random.get_rng_state()
    first, second, other = build(tiny, 3), build(tiny, 3), build(tiny, 4)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert any(not torch.equal(t, other.state_dict()[n]) for n, t in first.state_dict().items())


def test_weights_do_not_depend_on_the_exits() -> None:
    all_exits, one_exit = build(SLIM, 3).state_dict(), build(replace(SLIM, exits=(5,)), 3).state_dict()
    assert len(one_exit) < len(all_exits)
    for name, tensor in one_exit.items():
        assert torch.equal(tensor, all_exits[name])


def test_every_backbone_is_listed() -> None:
    assert backbones() == (
        "convnet",
        "deit_tiny",
        "lenet",
        "resnet18",
        "resnet_slim",
        "transformer4",
        "vit_small32",
        "wrn16",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "resnet"}, r"network\.name is 'resnet', must be one of convnet, deit_tiny"),
        ({"num_classes": 1}, r"1 class\(es\)"),
        ({"input_shape": (8, 8)}, r"shape is \(8, 8\), must be \(channels, height, width\)"),
        ({"vocabulary": 50}, "'resnet_slim' does not take texts: choose one of transformer4"),
        ({"name": "transformer4"}, "'transformer4' does not take images: choose one of convnet"),
        ({"name": "transformer4", "vocabulary": 50}, r"shape is .*, must be \(length\)"),
        ({"width": -1}, r"network\.width is -1, must be at least 0"),
        ({"exits": (2, 4)}, r"network\.exits is 2,4: .* end with 5"),
        ({"exits": (0, 5)}, "from 1"),
        ({"exits": (3, 2, 5)}, "rising"),
        ({"tiers": (1, 3)}, r"network\.tiers is 1,3: .* end with 4"),
        ({"tiers": (2, 2, 4)}, "rising"),
        ({"tiers": (0, 4)}, "from 1"),
    ],
)
def test_impossible_spec_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(replace(SLIM, **changes), 0)


@pytest.mark.parametrize("name", [name for name in backbones() if name != "transformer4"])
def test_default_width_is_that_of_the_backbone(name: str) -> None:
    spec = NetworkSpec(name, 2, (1, 32, 32))
    assert width_of(replace(spec, width=7)) == 7
    own, named = (build(s, 0).state_dict() for s in (spec, replace(spec, width=width_of(spec))))
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in named.items()}


@pytest.mark.parametrize("name", backbones())
def test_units_are_counted_before_a_network_is_built(name: str) -> None:
    texts = name == "transformer4"
    spec = NetworkSpec(name, 2, (16,) if texts else (1, 32, 32), vocabulary=50 if texts else 0)
    assert unit_count(name) == len(build(spec, 0).units)


@pytest.mark.parametrize("name", ["transformer4", "resnet"])
def test_width_of_a_text_network_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' does not take images: choose one of convnet, deit_tiny, le"):
        width_of(NetworkSpec(name, 2, (1, 32, 32)))


def test_networks_without_torchvision_do_not_import_it() -> None:
    script = (
        "import sys; from common.networks import NetworkSpec, build; "
        "[build(NetworkSpec(name, 10, (3, 32, 32)), 0) for name in ('convnet', 'lenet', 'wrn16')]; "
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(("name", "backbone"), BACKBONES.items())
def test_table_of_backbones_has_their_exits(name: str, backbone: Backbone) -> None:
    shape, vocabulary = ((8,), 50) if backbone.texts else ((3, 32, 32), 0)
    network = build(NetworkSpec(name, 4, shape, vocabulary=vocabulary), 0)
    assert network.exit_positions == backbone.exits
    assert network.end == backbone.exits[-1]

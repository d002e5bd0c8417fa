"""Early-exit networks: one contract (`base`), a file per backbone, and the registry that builds them."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib import import_module
from itertools import pairwise
from typing import Any

from common.errors import UserError
from common.networks.base import (
    Architecture,
    EarlyExitNetwork,
    ExitOutputs,
    Inference,
    Left,
    Trunk,
    rescale_gradient,
)
from common.networks.cost import CostTable, UnitCost, cost_table
from common.seeding import seeded

__all__ = [
    "CostTable",
    "EarlyExitNetwork",
    "ExitOutputs",
    "Inference",
    "Left",
    "NetworkSpec",
    "UnitCost",
    "backbones",
    "build",
    "cost_table",
    "rescale_gradient",
    "width_of",
    "without_early_exits",
]

# name -> module of `common.networks` with a function of that name; imported when it is needed, since some need
# torchvision, whose import takes a second. The function takes ((C, H, W), width)
_BACKBONES = {
    "convnet": "convnet",
    "deit_tiny": "vit",
    "lenet": "lenet",
    "resnet18": "resnet",
    "resnet_slim": "resnet",
    "vit_small32": "vit",
    "wrn16": "wide_resnet",
}
_TEXT_BACKBONES = {"transformer4": "transformer"}  # likewise; takes (length of a text, number of token ids, width)
_OWN_WIDTHS = {
    "convnet": 128, "deit_tiny": 192, "lenet": 6, "resnet18": 64, "resnet_slim": 16, "vit_small32": 64, "wrn16": 1,
}  # fmt: skip


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides a network's shape. Travels as JSON."""

    name: str  # one of `backbones()`
    num_classes: int
    input_shape: tuple[int, ...]  # (C, H, W), or (L,) of a text's token ids
    exits: tuple[int, ...] = ()  # units before each exit; (): the backbone's default
    tiers: tuple[int, ...] = ()  # exits of each depth tier, such as (1, 2, 3, 4); (): every exit ends a tier
    width: int = 0  # first stage's channels, embedding length, or a Wide ResNet's factor; 0: the backbone's default
    ensemble: float = 0.0  # weight of the previous exit's logits (BoostNet: 0.2); 0: exits are independent
    lora_rank: int = 0  # rank of the adapters; 0: train every parameter
    pretrained: str = ""  # a .safetensors file or a Hugging Face hub id; empty: random weights
    vocabulary: int = 0  # number of token ids; 0: images

    def without_weights(self) -> "NetworkSpec":
        """Return the spec without its file of weights."""
        return replace(self, pretrained="")

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "NetworkSpec":
        """Return the spec that `to_json` wrote.

        Raises:
            UserError: a field is unknown or missing.
        """
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(text).items()
        }
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise UserError(f"unknown network field {', '.join(sorted(unknown))}: update this installation")
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"incomplete network description ({error}): update this installation") from error


def backbones() -> tuple[str, ...]:
    """Return the names that `NetworkSpec.name` may have."""
    return tuple(sorted([*_BACKBONES, *_TEXT_BACKBONES]))


def build(spec: NetworkSpec, seed: int) -> EarlyExitNetwork:
    """Return the network: the same seed gives the same bits, and the global random state does not change.

    The trunk's weights do not depend on the exits, nor one head's weights on the other heads.

    Raises:
        UserError: the name is unknown; exits, tiers, width, input shape or class count are impossible; LoRA needs
            attention; or the pretrained file is missing or does not fit.
    """
    if spec.name not in backbones():
        raise UserError(f"network.name is {spec.name!r}, must be one of {', '.join(backbones())}")
    _check_numbers(spec)
    with seeded("trunk", seed):
        trunk = _trunk(spec)
    exits = _exit_positions(spec, trunk)
    architecture = Architecture(
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        tier_positions=_tier_positions(spec, exits),
        widths=trunk.widths,
        head=trunk.head,
        latent_shape=trunk.latent_shape,
        latent_unit=trunk.latent_unit,
        ensemble=spec.ensemble,
        seed=seed,
        vocabulary=spec.vocabulary,
    )
    heads = {position: architecture.new_head(position) for position in exits}
    network = EarlyExitNetwork(dict(enumerate(trunk.units)), heads, architecture)
    if spec.pretrained:
        from common.networks.pretrained import load_pretrained

        load_pretrained(network, spec.pretrained)
    if spec.lora_rank:
        from common.networks.lora import add_adapters

        add_adapters(network, spec.lora_rank, seed)
    return network


def width_of(spec: NetworkSpec) -> int:
    """Return an image network's width, the backbone's default if the spec's is 0; raises `UserError`."""
    if spec.name not in _OWN_WIDTHS:
        raise UserError(_not_for(spec.name, "images", _BACKBONES))
    return spec.width or _OWN_WIDTHS[spec.name]


def without_early_exits(spec: NetworkSpec) -> NetworkSpec:
    """Return the spec of the same trunk with the last exit only; raises what `build` raises."""
    whole = replace(spec, exits=(), tiers=(), pretrained="")
    return replace(spec, exits=(build(whole, seed=0).end,), tiers=())


def _check_numbers(spec: NetworkSpec) -> None:
    if spec.num_classes < 2:
        raise UserError(f"the data have {spec.num_classes} class(es): a classifier needs 2 or more")
    amounts = {"network.width": spec.width, "network.lora-rank": spec.lora_rank, "data.vocabulary": spec.vocabulary}
    for key, value in {**amounts, "the network's ensemble weight": spec.ensemble}.items():
        if value < 0:
            raise UserError(f"{key} is {value}, must be at least 0")
    kind, fitting = ("texts", set(_TEXT_BACKBONES)) if spec.vocabulary else ("images", set(_BACKBONES))
    if spec.name not in fitting:
        raise UserError(_not_for(spec.name, kind, fitting))
    axes = ("length",) if spec.vocabulary else ("channels", "height", "width")
    if len(spec.input_shape) != len(axes) or min(spec.input_shape) < 1:
        raise UserError(f"the data's shape is {spec.input_shape}, must be ({', '.join(axes)}) of 1 or more")


def _not_for(name: str, kind: str, fitting: Iterable[str]) -> str:
    return f"network.name {name!r} does not take {kind}: choose one of {', '.join(sorted(fitting))}"


def _trunk(spec: NetworkSpec) -> Trunk:
    module = import_module(f"common.networks.{(_BACKBONES | _TEXT_BACKBONES)[spec.name]}")
    sizes = (spec.input_shape[0], spec.vocabulary) if spec.vocabulary else (spec.input_shape,)
    trunk: Trunk = getattr(module, spec.name)(*sizes, spec.width)
    return trunk


def _exit_positions(spec: NetworkSpec, trunk: Trunk) -> tuple[int, ...]:
    exits = spec.exits or trunk.default_exits
    last = len(trunk.units)
    if exits[0] < 1 or exits[-1] != last or not _increases(exits):
        raise UserError(
            f"network.exits is {_typed(exits)}: give rising unit counts from 1 that end with {last} for {spec.name}"
        )
    return exits


def _tier_positions(spec: NetworkSpec, exits: tuple[int, ...]) -> tuple[int, ...]:
    tiers = spec.tiers or tuple(range(1, len(exits) + 1))
    if tiers[0] < 1 or tiers[-1] != len(exits) or not _increases(tiers):
        raise UserError(
            f"network.tiers is {_typed(tiers)}: give rising exit counts from 1 that end with {len(exits)}, all exits"
        )
    return tuple(exits[count - 1] for count in tiers)


def _typed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _increases(numbers: tuple[int, ...]) -> bool:
    return all(a < b for a, b in pairwise(numbers))

"""Early-exit networks: one contract (`base`), a file per backbone, and the registry that builds them."""

import json
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from importlib import import_module
from typing import Any

from torch import nn

from common.errors import UserError
from common.networks.base import (
    Architecture,
    EarlyExitNetwork,
    ExitOutput,
    ExitOutputs,
    Inference,
    Left,
    Trunk,
    rescale_gradient,
)
from common.networks.cost import CostTable, UnitCost, cost_table
from common.networks.outside import check_network, outside_trunk, take_planes
from common.networks.squares import squares_after
from common.plugins import REFERENCE, is_reference
from common.sections.networks import (
    BACKBONES,
    NORMS,
    POOLINGS,
    default_exits,
    input_mistake,
    norm_mistake,
    position_mistakes,
)
from common.seeding import seeded

__all__ = [
    "CostTable",
    "EarlyExitNetwork",
    "ExitOutput",
    "ExitOutputs",
    "Inference",
    "Left",
    "NetworkSpec",
    "UnitCost",
    "backbones",
    "build",
    "check_outside",
    "cost_table",
    "rescale_gradient",
    "width_of",
    "without_early_exits",
]


@dataclass(frozen=True)
class NetworkSpec:
    """Everything that decides a network's shape. Travels as JSON."""

    name: str  # one of `backbones()`, or a function `package.module:function`
    num_classes: int
    input_shape: tuple[int, ...]  # (C, H, W), or (L,) of a text's token ids
    exits: tuple[int, ...] = ()  # units before each exit; (): the backbone's default
    tiers: tuple[int, ...] = ()  # exits of each depth tier, such as (1, 2, 3, 4); (): every exit ends a tier
    width: int = 0  # first stage's channels, embedding length, or a Wide ResNet's factor; 0: the backbone's default
    ensemble: float = 0.0  # weight of the previous exit's logits (BoostNet: 0.2); 0: exits are independent
    lora_rank: int = 0  # rank of the adapters; 0: train every parameter
    pretrained: str = ""  # a .safetensors file or a Hugging Face hub id; empty: random weights
    vocabulary: int = 0  # number of token ids; 0: images
    recurrent: int = 0  # width of the exits' tokens for one shared, recurrent classifier (ReeFL); 0: one per exit
    norm: str = "batch"  # "group": GroupNorm in the place of batch norm
    pooling: str = "mean"  # "squares": exits on maps keep the mean of every square (`common.networks.squares`)

    def without_weights(self) -> "NetworkSpec":
        """Return the spec without its file of weights."""
        return replace(self, pretrained="")

    def plain(self) -> dict[str, Any]:
        """Return the fields for JSON; an older installation reads them unless the network needs a newer one."""
        newer = {"recurrent": 0, "norm": "batch", "pooling": "mean"}
        return {key: value for key, value in asdict(self).items() if key not in newer or value != newer[key]}

    def to_json(self) -> str:
        """Return the spec as one line of JSON."""
        return json.dumps(self.plain())

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
    return tuple(BACKBONES)


def build(spec: NetworkSpec, seed: int) -> EarlyExitNetwork:
    """Return the network: the same seed gives the same bits, and the global random state does not change.

    The trunk's weights do not depend on the exits, nor one head's weights on the other heads.

    Raises:
        UserError: the name is unknown; exits, tiers, width, input shape or class count are impossible; LoRA needs
            attention, GroupNorm a network of convolutions; or the pretrained file is missing or does not fit.
    """
    outside = is_reference(spec.name)
    if not outside and spec.name not in backbones():
        raise UserError(f"network.name is {spec.name!r}, must be one of {', '.join(backbones())}, or {REFERENCE}")
    _check_numbers(spec)
    with seeded("trunk", seed):
        trunk = outside_trunk(spec.name, spec) if outside else _trunk(spec)
    if spec.norm == "group":
        trunk = _by_groups(trunk, spec.name)
    if outside:
        take_planes(trunk.units)
    default = default_exits(spec.name) or trunk.exits or tuple(range(1, len(trunk.units) + 1))
    if problems := position_mistakes(spec.name, spec.exits, spec.tiers, default):
        raise UserError("; ".join(problems))
    exits = spec.exits or default
    tiers = spec.tiers or tuple(range(1, len(exits) + 1))
    divided = spec.pooling == "squares" and not spec.vocabulary
    architecture = Architecture(
        num_classes=spec.num_classes,
        input_shape=spec.input_shape,
        tier_positions=tuple(exits[count - 1] for count in tiers),
        widths=trunk.widths,
        head=trunk.head,
        latent_shape=trunk.latent_shape,
        latent_unit=trunk.latent_unit,
        ensemble=spec.ensemble,
        seed=seed,
        vocabulary=spec.vocabulary,
        recurrent=spec.recurrent,
        squares=squares_after(trunk.units, spec.input_shape) if divided else (),
    )
    heads = {position: architecture.new_head(position) for position in exits}
    recurrent = _recurrent(spec, len(exits), seed) if spec.recurrent else None
    network = EarlyExitNetwork(dict(enumerate(trunk.units)), heads, architecture, recurrent)
    if spec.pretrained and not outside:  # a function loads its weights itself
        from common.networks.pretrained import load_pretrained

        load_pretrained(network, spec.pretrained)
    if spec.lora_rank:
        from common.networks.lora import add_adapters

        add_adapters(network, spec.lora_rank, seed)
    return network


def check_outside(spec: NetworkSpec, seed: int) -> None:
    """Check a network from outside against the whole contract, once, before a run; nothing to do for another one.

    Raises `UserError` that says what its function has to change.
    """
    if is_reference(spec.name):
        check_network(spec.name, build(spec, seed), build(spec, seed))


def width_of(spec: NetworkSpec) -> int:
    """Return an image network's width, the backbone's default if the spec's is 0; raises `UserError`."""
    if problem := input_mistake(spec.name, texts=False):
        raise UserError(problem)
    if is_reference(spec.name) and not spec.width:
        raise UserError(f"network.width is 0, but network.name {spec.name!r} has no width known here: give one")
    return spec.width or BACKBONES[spec.name].width


def without_early_exits(spec: NetworkSpec) -> NetworkSpec:
    """Return the spec of the same trunk with the last exit only; raises what `build` raises."""
    whole = replace(spec, exits=(), tiers=(), pretrained="")
    return replace(spec, exits=(build(whole, seed=0).end,), tiers=())


def _check_numbers(spec: NetworkSpec) -> None:
    if spec.num_classes < 2:
        raise UserError(f"the data have {spec.num_classes} class(es): a classifier needs 2 or more")
    amounts = {"network.width": spec.width, "network.lora-rank": spec.lora_rank, "data.vocabulary": spec.vocabulary}
    others = {"the network's ensemble weight": spec.ensemble, "the width of recurrent exits": spec.recurrent}
    for key, value in {**amounts, **others}.items():
        if value < 0:
            raise UserError(f"{key} is {value}, must be at least 0")
    for key, word, words in (("network.norm", spec.norm, NORMS), ("the exits' pooling", spec.pooling, POOLINGS)):
        if word not in words:
            raise UserError(f"{key} is {word!r}, must be one of {', '.join(words)}")
    for problem in (input_mistake(spec.name, texts=bool(spec.vocabulary)), norm_mistake(spec.name, spec.norm)):
        if problem:
            raise UserError(problem)
    axes = ("length",) if spec.vocabulary else ("channels", "height", "width")
    if len(spec.input_shape) != len(axes) or min(spec.input_shape) < 1:
        raise UserError(f"the data's shape is {spec.input_shape}, must be ({', '.join(axes)}) of 1 or more")


def _recurrent(spec: NetworkSpec, exits: int, seed: int) -> nn.Module:
    """Return the classifier that so many exits share; raises `UserError` for an impossible width."""
    from common.networks.recurrent import HEADS, RecurrentExit  # needs torchvision

    if spec.recurrent % HEADS or spec.ensemble:
        raise UserError(
            f"recurrent exits of width {spec.recurrent}: give a multiple of {HEADS}, and no ensemble weight beside it"
        )
    with seeded("recurrent exit", seed):
        return RecurrentExit(spec.recurrent, exits, spec.num_classes)


def _by_groups(trunk: Trunk, name: str) -> Trunk:
    """Return a trunk that normalises by groups of channels; raises `UserError`."""
    from common.networks.norms import head_by_groups, normalised_by_groups

    return replace(trunk, units=normalised_by_groups(trunk.units, name), head=partial(head_by_groups, trunk.head))


def _trunk(spec: NetworkSpec) -> Trunk:
    # imported when it is needed: some modules need torchvision, whose import takes a second
    module = import_module(f"common.networks.{BACKBONES[spec.name].module}")
    # a function takes ((C, H, W), width), or (length of a text, number of token ids, width)
    sizes = (spec.input_shape[0], spec.vocabulary) if spec.vocabulary else (spec.input_shape,)
    trunk: Trunk = getattr(module, spec.name)(*sizes, spec.width)
    return trunk

"""The backbones by name, and where exits and tiers may be: known before a network is built."""

from itertools import pairwise
from typing import Annotated, NamedTuple

from common.plugins import is_reference
from common.settings import Name


class Backbone(NamedTuple):
    """One backbone."""

    module: str  # of `common.networks`, with a function of the backbone's name
    exits: tuple[int, ...]  # units before each exit by default; the last exit comes after all units
    width: int = 0  # default width of an image network
    texts: bool = False  # takes texts, not images


BACKBONES = {
    "convnet": Backbone("convnet", (1, 2, 3), 128),
    "deit_tiny": Backbone("vit", (4, 7, 10, 13), 192),
    "lenet": Backbone("lenet", (1, 2, 3), 6),
    "resnet18": Backbone("resnet", (3, 5, 7, 9), 64),
    "resnet_slim": Backbone("resnet", (2, 3, 4, 5), 16),
    "transformer4": Backbone("transformer", (2, 3, 4, 5), texts=True),
    "vit_small32": Backbone("vit", (4, 7, 10, 13), 64),
    "wrn16": Backbone("wide_resnet", (1, 2, 3, 4, 5, 6, 7), 1),
}

ATTENTION = ("transformer", "vit")  # modules whose backbones take LoRA adapters
PRETRAINED = ("vit",)  # and pretrained weights
NORMS = ("batch", "group")  # the first is each backbone's own normalisation
POOLINGS = ("mean", "squares")  # of the maps that exits see; the first is each backbone's own

BackboneName = Annotated[str, Name(tuple(BACKBONES))]


def default_exits(name: str) -> tuple[int, ...]:
    """Return a backbone's own exits; () for a function's, which are known once it is called."""
    return BACKBONES[name].exits if name in BACKBONES else ()


def unit_count(name: str) -> int:
    """Return how many units a backbone has; 0 for a function's, which is known once it is called."""
    return max(default_exits(name), default=0)


def position_mistakes(
    name: str, exits: tuple[int, ...], tiers: tuple[int, ...], default: tuple[int, ...] = ()
) -> list[str]:
    """Return a sentence for exits and for tiers that this backbone cannot have; () stands for the default.

    Where the default is not known, only the order is checked.
    """
    default = default or default_exits(name)
    if exits and not _rises(exits, last := (default or exits)[-1]):
        problem = f"network.exits is {_typed(exits)}: give rising unit counts from 1 that end with {last}"
        return [f"{problem} for network.name {name!r}"]
    count = len(exits or default) or max(tiers, default=0)
    if tiers and not _rises(tiers, count):
        return [f"network.tiers is {_typed(tiers)}: give rising exit counts from 1 that end with {count}, all exits"]
    return []


def weight_mistakes(name: str, lora_rank: int, pretrained: str) -> list[str]:
    """Return a sentence for adapters and for pretrained weights that this backbone cannot have."""
    if is_reference(name):
        return []  # known once the function is called
    module, found = BACKBONES[name].module, list[str]()
    if lora_rank and module not in ATTENTION:
        problem = f"network.lora-rank is {lora_rank}, but network.name {name!r} has no attention"
        found.append(f"{problem}: set it to 0, or choose one of {_made_by(ATTENTION)}")
    if pretrained and module not in PRETRAINED:
        problem = f"network.pretrained is {pretrained!r}, but network.name {name!r} takes none"
        found.append(f"{problem}: leave it empty, or choose one of {_made_by(PRETRAINED)}")
    return found


def norm_mistake(name: str, norm: str) -> str:
    """Return the sentence for a normalisation that this backbone cannot have; empty if it can."""
    if norm == "batch" or is_reference(name) or name not in BACKBONES or BACKBONES[name].module not in ATTENTION:
        return ""
    others = ", ".join(other for other, backbone in BACKBONES.items() if backbone.module not in ATTENTION)
    problem = f"network.norm is {norm!r}, but network.name {name!r} is a transformer and keeps its LayerNorm"
    return f"{problem}: set it to batch, or choose one of {others}"


def _made_by(modules: tuple[str, ...]) -> str:
    return ", ".join(name for name, backbone in BACKBONES.items() if backbone.module in modules)


def input_mistake(name: str, *, texts: bool) -> str:
    """Return the sentence for a backbone that does not take such samples; empty if it does."""
    fitting = [other for other, backbone in BACKBONES.items() if backbone.texts == texts]
    if name in fitting or is_reference(name):
        return ""
    return f"network.name {name!r} does not take {'texts' if texts else 'images'}: choose one of {', '.join(fitting)}"


def _rises(numbers: tuple[int, ...], end: int) -> bool:
    return numbers[0] >= 1 and numbers[-1] == end and all(a < b for a, b in pairwise(numbers))


def _typed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))

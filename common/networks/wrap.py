"""Any chain of torch modules as a trunk: a `nn.Sequential`, a list of blocks, or the stages of a timm model."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from common.errors import UserError
from common.networks.base import Trunk
from common.networks.heads import ClassTokenLinear, ExitHead, MeanLinear, PooledLinear

Pool = Literal["map", "token", "mean"]
HEADS: dict[Pool, type[ExitHead]] = {"map": PooledLinear, "token": ClassTokenLinear, "mean": MeanLinear}
MAP, TOKENS = 4, 3  # dimensions of (B, C, H, W) and of (B, T, D)


def trunk_of(
    blocks: nn.Sequential | Iterable[nn.Module],
    input_shape: Sequence[int],
    *,
    vocabulary: int = 0,
    pool: Pool | None = None,
    exits: Sequence[int] = (),
) -> Trunk:
    """Return a trunk whose units are these modules in order, after one blank batch has gone through them for shapes.

    Args:
        blocks: each takes the one tensor that the one before it returns. None changes its input in place.
        input_shape: of one sample, (C, H, W), or (L,) of a text's token ids: `spec.input_shape`.
        vocabulary: `spec.vocabulary`, of texts.
        pool: how exits make one feature of a block's output: "map", the mean over (B, C, H, W); "token", the first
            token of (B, T, D); "mean", the mean over all that lies between batch and last dimension, such as
            (B, H, W, D), (B, T, D) or (B, D). None: "map" for four dimensions, "token" for three, else "mean".
        exits: units before each exit by default, rising, the last one all of them; (): an exit after every unit.

    Raises:
        UserError: a block does not take what the one before it returns.
    """
    units = list(blocks)
    shapes = [tuple(input_shape), *shapes_after(units, input_shape, vocabulary)]
    chosen = pool or {MAP: "map", TOKENS: "token"}.get(1 + len(shapes[-1]), "mean")
    widths = tuple(shape[0] if chosen == "map" else shape[-1] for shape in shapes[1:])
    latent = min(1, len(units) - 1)
    return Trunk(units, widths, HEADS[chosen], shapes[latent], latent, tuple(exits))  # type: ignore[index]


def shapes_after(units: Sequence[nn.Module], input_shape: Sequence[int], vocabulary: int = 0) -> list[tuple[int, ...]]:
    """Return the shape of what each unit returns, without the batch, for a blank batch that goes through all of them.

    Takes what `trunk_of` takes, and raises what it raises.
    """
    shape = (2, *input_shape)
    x = torch.ones(shape, dtype=torch.int64) if vocabulary else torch.zeros(shape)
    shapes, modes = list[tuple[int, ...]](), [unit.training for unit in units]
    with torch.no_grad():
        for index, unit in enumerate(units):
            x = _output(index, unit.eval(), x)
            shapes.append(tuple(x.shape[1:]))
    for unit, mode in zip(units, modes, strict=True):
        unit.train(mode)
    return shapes


def stages(model: nn.Module) -> list[nn.Module]:
    """Return the stages of a timm model made with `features_only=True`: each ends with one of its feature maps.

    Raises `UserError` for a model that is no chain of modules: give its blocks to `trunk_of` yourself.
    """
    ends = getattr(model, "return_layers", None)
    if not isinstance(model, nn.ModuleDict) or not ends:
        raise UserError(
            f"{type(model).__name__} is not a chain of named modules with feature maps, as timm makes of a ResNet with "
            "features_only=True: give the list of its blocks to trunk_of"
        )
    units, modules = list[nn.Module](), OrderedDict[str, nn.Module]()
    for name, module in model.items():
        modules[name] = module
        if name in ends:
            units.append(nn.Sequential(modules))
            modules = OrderedDict()
    return units


def _output(index: int, unit: nn.Module, x: Tensor) -> Tensor:
    try:
        output = unit(x)
    except Exception as error:
        raise UserError(f"block {index} does not take {tuple(x.shape)}: {type(error).__name__}: {error}") from error
    if not isinstance(output, Tensor) or output.dim() < 2:
        raise UserError(f"block {index} returns {type(output).__name__}, must return one tensor (B, ...)")
    return output

"""Exits that keep where something is: the means of a map's squares in the place of the mean over the map."""

import math
from collections.abc import Sequence
from typing import cast

from torch import nn

from common.networks.heads import Squares
from common.networks.wrap import MAP, shapes_after

GRID = 4  # squares along each side of the image


def squares_after(units: Sequence[nn.Module], input_shape: tuple[int, ...]) -> tuple[Squares | None, ...]:
    """Return the squares of the map (B, C, H, W) that each unit returns, None of what is no map.

    A square's side is a quarter of the image's, rounded up, in the map's own pixels. So with images of 32x32 squares
    are those of AvgPool(8): a map of that size keeps 4x4 means, one of half the side 2x2, a smaller one its mean.

    Args:
        units: of an image network, in order.
        input_shape: (C, H, W) of an image.

    Raises:
        UserError: a unit does not take what the one before it returns.
    """
    side = math.ceil(input_shape[1] / GRID), math.ceil(input_shape[2] / GRID)
    maps = (shape[1:] if 1 + len(shape) == MAP else () for shape in shapes_after(units, input_shape))
    return tuple(Squares.of(cast(tuple[int, int], size), side) if size else None for size in maps)

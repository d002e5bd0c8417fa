"""Exit heads: a pooled feature of the trunk, then a linear classifier."""

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class ExitHead(nn.Module, ABC):
    """A classifier at an exit, in two steps because distillation compares the pooled features.

    `pooled` turns the trunk's tensor into one feature per sample (B, width); calling the head turns those
    features into logits (B, classes).
    """

    linear: nn.Linear

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """Return one feature per sample (B, width) of the trunk's tensor."""


class Squares(NamedTuple):
    """A map, divided: the squares at its right and lower edge may be smaller than the others."""

    side: tuple[int, int]  # height and width of a square
    number: int

    @classmethod
    def of(cls, size: tuple[int, int], side: tuple[int, int]) -> "Squares":
        """Return the squares of a map of size (H, W); a side longer than the map is the map's."""
        height, breadth = min(size[0], side[0]), min(size[1], side[1])
        return cls((height, breadth), math.ceil(size[0] / height) * math.ceil(size[1] / breadth))


class MapHead(ExitHead):
    """A linear layer on the mean over a map (B, C, H, W), or on the means of its squares."""

    squares: Squares | None = None

    def divide(self, squares: Squares) -> None:
        """Pool each square by itself from now on; the linear layer is a new one, of all these means."""
        self.squares = squares
        self.linear = nn.Linear(self.linear.in_features * squares.number, self.linear.out_features)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the means (B, C * squares), channel by channel."""
        if self.squares is None:
            return x.mean(dim=(2, 3))
        return functional.avg_pool2d(x, self.squares.side, ceil_mode=True).flatten(1)

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes) of pooled features (B, C * squares)."""
        return cast(Tensor, self.linear(feature))


class PooledLinear(MapHead):
    """Average pooling and a linear layer."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)


class MeanLinear(ExitHead):
    """The mean over all dimensions between the first and the last, and a linear layer, for (B, ..., D)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean (B, D) of tokens (B, T, D) or of maps (B, H, W, D), or vectors (B, D) as they are."""
        return x.mean(dim=tuple(range(1, x.dim() - 1))) if x.dim() > 2 else x

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes) of pooled features (B, D)."""
        return cast(Tensor, self.linear(feature))


class PreactivatedPooledLinear(MapHead):
    """BatchNorm and ReLU before the pooling, which a pre-activation trunk's blocks end without."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the means of the normalised, rectified map (B, C * squares), never negative."""
        return super().pooled(torch.relu(self.norm(x)))


class ClassTokenLinear(ExitHead):
    """LayerNorm and a linear layer on the class token, for tokens (B, T, D) (DarkDistill, KDD 2025)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the class token (B, D), before the head's norm."""
        return x[:, 0]

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes) of class tokens (B, D)."""
        return cast(Tensor, self.linear(self.norm(feature)))

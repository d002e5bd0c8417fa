"""Exit heads: a pooled feature of the trunk, then a linear classifier."""

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor, nn


class ExitHead(nn.Module, ABC):
    """A classifier at an exit, in two steps because distillation compares the pooled features.

    `pooled` turns the trunk's tensor into one feature per sample (B, width); calling the head turns those
    features into logits (B, classes).
    """

    linear: nn.Linear

    @abstractmethod
    def pooled(self, x: Tensor) -> Tensor:
        """Return one feature per sample (B, width) of the trunk's tensor."""


class PooledLinear(ExitHead):
    """Global average pooling and a linear layer, for maps (B, C, H, W)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean over the map (B, C)."""
        return x.mean(dim=(2, 3))

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes) of pooled features (B, C)."""
        return cast(Tensor, self.linear(feature))


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


class PreactivatedPooledLinear(ExitHead):
    """BatchNorm and ReLU before the pooling, which a pre-activation trunk's blocks end without."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, num_classes)

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean over the normalised, rectified map (B, C), never negative."""
        return torch.relu(self.norm(x)).mean(dim=(2, 3))

    def forward(self, feature: Tensor) -> Tensor:
        """Return logits (B, classes) of pooled features (B, C)."""
        return cast(Tensor, self.linear(feature))


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

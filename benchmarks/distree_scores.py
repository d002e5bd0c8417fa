"""The exit rule that is measured beside the product's: the paper's baseline."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from strategies.distree.exits.policies import Classify
from strategies.distree.exits.scores import ScorePolicy


@dataclass(frozen=True)
class NeighbourSimilarity(ScorePolicy):
    """The paper's baseline: the features have settled, cos(F_j, F_{j-1}) > T_j; no sample leaves at the first exit."""

    name: ClassVar[str] = "neighbour"

    def score(self, exit_index: int, features: Tensor, reference: Tensor | None, classify: Classify | None) -> Tensor:
        """Return the cosine to the previous exit's features; -inf at the first exit."""
        if reference is None:
            return torch.full((len(features),), -math.inf, dtype=torch.float64)
        return F.cosine_similarity(features.double(), reference.double(), dim=1)

"""Averaging layer by layer: every key over the models that hold it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.weights.flat import StateDict


class LayerMean:
    """The weighted mean of every key over the models that hold it; models are added one at a time."""

    def __init__(self) -> None:
        self.sums: StateDict = {}
        self.weights: dict[str, float] = {}

    def add(self, model: Mapping[str, Tensor], weight: float) -> None:
        """Add a model; a model of weight 0 adds nothing, not even its keys."""
        if not weight:
            return
        for key, value in model.items():
            if not value.is_floating_point():
                self.sums[key] = torch.maximum(self.sums[key], value) if key in self.sums else value.clone()
                continue
            term = value.double() * weight
            self.sums[key] = self.sums[key] + term if key in self.sums else term
            self.weights[key] = self.weights.get(key, 0.0) + weight

    def result(self) -> StateDict:
        """Return the means; a counter's mean is its maximum."""
        return {
            key: (value / self.weights[key]).float() if key in self.weights else value
            for key, value in self.sums.items()
        }


def average_layers(models: Mapping[int, StateDict], weights: Mapping[int, float]) -> StateDict:
    """Average every key over the parts that hold it, weighted by n_k (DarkDistill step 8, EEFL).

    Returns the keys of all models that have weight; a layer that only models without weight hold is left out.
    """
    mean = LayerMean()
    for part in sorted(models):
        mean.add(models[part], weights.get(part, 0.0))
    return mean.result()

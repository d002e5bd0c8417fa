"""The server's evaluation: any-time accuracy of every exit, and, at the end, the budgeted curve.

Thresholds are fitted on validation data (the union of the clients' validation parts) and applied to the test set;
nothing is ever chosen on test data.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from common.data.images import Normalizer, SampleSet
from common.exits import (
    ThresholdPolicy,
    anytime_accuracy,
    budgeted_curve,
    calibrate,
    collect_logits,
    exit_predictions,
)


class ServerEvaluator:
    """Holds the server's validation and test images."""

    def __init__(
        self,
        validation: SampleSet,
        test: SampleSet,
        normalize: Normalizer,
        device: torch.device,
        batch_size: int,
        accuracy_loss: float,
    ) -> None:
        """`accuracy_loss`: how much validation accuracy a calibrated early exit may cost, 0.01 = one point."""
        self.validation, self.test, self.normalize = validation, test, normalize.to(device)
        self._resident: tuple[SampleSet, SampleSet] | None = None  # both, on a GPU that has room for them
        self.device, self.batch_size, self.accuracy_loss = device, batch_size, accuracy_loss
        self.policy: ThresholdPolicy | None = None

    def evaluate(self, network: nn.Module, exit_macs: Sequence[float] = ()) -> dict[str, Any]:
        """Return accuracies in [0, 1] per exit, on validation and on test.

        Given the MACs of a sample that leaves at each exit, add the cost curve and fit `policy`.
        """
        home = next(network.parameters()).device
        network.to(self.device)
        if self._resident is None:
            self._resident = self.validation.resident(self.device), self.test.resident(self.device)
        try:
            held_out, test = (collect_logits(network, self._batches(samples)) for samples in self._resident)
        finally:
            network.to(home)
        exits = anytime_accuracy(*test).tolist()
        result: dict[str, Any] = {
            "exits": exits,
            "mean": sum(exits) / len(exits),
            "validation": anytime_accuracy(*held_out).tolist(),
        }
        if exit_macs:
            result |= self._cost_curve(exit_macs, held_out, test)
        return result

    def _cost_curve(
        self, macs: Sequence[float], held_out: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
    ) -> dict[str, Any]:
        self.policy = calibrate(*held_out, macs, self.accuracy_loss)
        left = self.policy.exits(test[0])
        hits = exit_predictions(test[0], left) == test[1]
        return {
            "exit_macs": list(macs),
            "budgeted": [asdict(point) for point in budgeted_curve(*held_out, *test, macs)],
            "calibrated": {
                "thresholds": list(self.policy.thresholds),
                "accuracy": hits.double().mean().item(),
                "mean_macs": torch.tensor(macs, dtype=torch.float64)[left].mean().item(),
                "exit_histogram": torch.bincount(left, minlength=len(macs)).tolist(),
            },
        }

    def _batches(self, images: SampleSet) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self.normalize(images.inputs[rows].to(self.device)), images.labels[rows]

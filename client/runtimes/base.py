"""What the commands need of a network, whatever computes it."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.console.samples import Takes
from common.exits.policy import ThresholdPolicy

# (exit index from 0, logits (b, classes) of the samples left) -> bool (b,), which leave
Leaves = Callable[[int, Any], Any]


@dataclass(frozen=True)
class Inference:
    """The outputs of early-exit inference."""

    logits: NDArray[np.float32]  # (B, classes), of each sample at the exit where it left
    exits: NDArray[np.int64]  # (B,), that exit's index from 0


@dataclass(frozen=True)
class HalfOutputs:
    """The outputs of a device's half of a split network."""

    logits: NDArray[np.float32]  # (B, classes) of its last exit
    features: NDArray[np.float32]  # (B, ...) at the cut


class Runtime(Protocol):
    """A network on this device; its inputs are uint8 pixels (B, C, H, W) or int32 token ids (B, L)."""

    @property
    def run(self) -> str:
        """Name of the run."""

    @property
    def cut(self) -> int:
        """Units of a split network's device half; 0: not split."""

    @property
    def client(self) -> int | None:
        """Whose device half of a split network it is; None: not known."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""

    @property
    def takes(self) -> Takes:
        """What the network takes."""

    @property
    def policy(self) -> ThresholdPolicy:
        """The stored exit policy."""

    @property
    def macs(self) -> tuple[int, ...]:
        """MACs of a sample that leaves at each exit, shallow to deep."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one sample's features at the cut."""

    def infer(self, inputs: NDArray[Any], leaves: Leaves) -> Inference:
        """Run early-exit inference, which stops computing for samples that have left."""

    def half(self, inputs: NDArray[Any]) -> HalfOutputs:
        """Run all of a split network's device half."""


def blank(runtime: Runtime, batch: int = 1) -> NDArray[Any]:
    """Return black images, or texts of one repeated token."""
    shape = (batch, *runtime.takes.shape)
    return np.ones(shape, np.int32) if runtime.takes.vocabulary else np.zeros(shape, np.uint8)


def warm_up(runtime: Runtime) -> None:
    """Run one blank sample through all units: the first pass of a process includes its set-up."""
    runtime.infer(blank(runtime), ThresholdPolicy((math.inf,) * (len(runtime.macs) - 1)))

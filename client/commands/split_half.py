"""The device's half of split inference."""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.runtimes.base import Runtime
from common.exits.policy import ThresholdPolicy


@dataclass(frozen=True)
class Half:
    """The device's results for a batch."""

    logits: NDArray[np.float32]  # (b, classes) of its exit
    features: NDArray[np.float32]  # (b, ...) at the cut
    stays: NDArray[np.bool_]  # (b,): confident enough
    ms: float  # milliseconds per sample


def device_half(network: Runtime, inputs: NDArray[Any], gate: ThresholdPolicy) -> Half:
    """Return the device's results for a batch of inputs."""
    started = time.perf_counter()
    outputs = network.half(inputs)
    stays = gate(0, outputs.logits)
    ms = (time.perf_counter() - started) * 1000 / len(inputs)
    return Half(outputs.logits, outputs.features, stays, ms)

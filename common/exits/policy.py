"""Confidence measures and the threshold policy of inference, of torch's tensors and of numpy's arrays."""

import json
import math
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from common.arrays import entropy, first_true, full, namespace, softmax
from common.errors import UserError

A = TypeVar("A", bound=Any)  # a torch tensor or a numpy array

MEASURES = ("softmax", "raw", "entropy")


def confidence(logits: A, measure: str = "softmax") -> A:
    """Return the confidence `(...)` of logits `(..., C)`, larger = more confident.

    Args:
        logits: class scores.
        measure: "softmax" is the largest probability (BranchyNet, MSDNet); "raw" the largest logit, which the
            published DarkDistill figures use; "entropy" is `1 - H(softmax) / log C`, in [0, 1].

    Raises:
        UserError: unknown measure.
    """
    xp: Any = namespace(logits)
    if measure == "softmax":
        return xp.amax(softmax(logits), -1)
    if measure == "raw":
        return xp.amax(logits, -1)
    if measure == "entropy":
        # rounding may lead just outside
        return xp.clip(1.0 - entropy(softmax(logits)) / math.log(logits.shape[-1]), 0.0, 1.0)
    raise UserError(f"unknown confidence measure {measure!r}: choose one of {', '.join(MEASURES)}")


@dataclass(frozen=True)
class ThresholdPolicy:
    """A sample leaves at the first exit whose threshold its confidence reaches; the last exit takes all."""

    thresholds: tuple[float, ...]  # one per exit but the last, shallow to deep; `inf`: no sample leaves here
    measure: str = "softmax"  # see `confidence`

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise UserError(f"unknown confidence measure {self.measure!r}: choose one of {', '.join(MEASURES)}")
        if not all(threshold > -math.inf for threshold in self.thresholds):
            raise UserError("an exit threshold is not a number: check that the network's outputs are finite")

    @property
    def num_exits(self) -> int:
        """Number of exits of the network that the policy is for."""
        return len(self.thresholds) + 1

    def __call__(self, exit_index: int, logits: Any) -> Any:
        """Return which samples leave at exit `exit_index` (from 0), bool `(b,)`, from that exit's logits `(b, C)`."""
        if exit_index >= len(self.thresholds):
            return full(len(logits), True, logits, "bool")
        return confidence(logits, self.measure) >= self.thresholds[exit_index]

    def exits(self, logits: Any) -> Any:
        """Return the exit (from 0) every sample leaves at, int64 `(N,)`, from all exits' logits `(E, N, C)`.

        Raises:
            UserError: the logits have another number of exits than the policy.
        """
        if logits.shape[0] != self.num_exits:
            raise UserError(
                f"the exit policy is for {self.num_exits} exits, the network has {logits.shape[0]}: calibrate it again"
            )
        leaves = namespace(logits).stack([self(index, exit_logits) for index, exit_logits in enumerate(logits)])
        return first_true(leaves)  # the shallowest exit whose threshold is reached

    def to_json(self) -> str:
        """Return the policy as strict JSON (an infinite threshold becomes null)."""
        thresholds = [None if math.isinf(threshold) else threshold for threshold in self.thresholds]
        return json.dumps({"measure": self.measure, "thresholds": thresholds}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the policy that `to_json` wrote.

        Raises:
            UserError: the text is not a stored policy.
        """
        try:
            state = json.loads(text)
            thresholds = tuple(math.inf if value is None else float(value) for value in state["thresholds"])
            return cls(thresholds, str(state["measure"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UserError("the stored exit policy is damaged: calibrate the network again") from error


def entropy_gate(tau: float) -> ThresholdPolicy:
    """Return the policy of two exits, a device's and its server's.

    A sample leaves on the device if its entropy at the device's exit, divided by log C, is at most `tau` (BranchyNet).
    Both ends are exact: at 0 no sample leaves on the device, at 1 all do.

    Raises:
        UserError: `tau` is not in [0, 1].
    """
    if not 0.0 <= tau <= 1.0:
        raise UserError(f"tau {tau}: give a normalised entropy from 0 (all to the server) to 1 (all on the device)")
    return ThresholdPolicy((1.0 - tau if tau > 0.0 else math.inf,), "entropy")

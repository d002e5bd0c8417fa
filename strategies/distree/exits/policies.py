"""Exit policies: at which exit a sample leaves its student. Each device decides alone.

Source: DistrEE (Peng et al., arXiv 2502.15735): feature difference and random exits. Own heads, entropy and the
gate are ours.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from common.arrays import first_true, full, vector
from common.errors import UserError
from common.seeding import derive_seed
from strategies.distree.exits.gate import Gate
from strategies.distree.exits.scores import (
    Array,
    Classify,
    Entropy,
    FeatureDifference,
    Leaves,
    OwnHead,
    ScorePolicy,
    check_exits,
    diff_cos,
)

__all__ = [
    "CALIBRATED",
    "PUBLISHED",
    "Classify",
    "Entropy",
    "ExitPolicy",
    "FeatureDifference",
    "Gate",
    "LastExit",
    "OwnHead",
    "Policies",
    "Random",
    "ScorePolicy",
    "check_exits",
    "diff_cos",
    "oracle_exits",
    "policy_from_json",
    "remedy",
]

# T_1..T_6 of the paper's 7 exits; the last exit takes all samples, whatever its T_7 = 1.28
PUBLISHED = (1.0, 1.08, 1.12, 1.16, 1.20, 1.24)
# Rules by which samples can leave, by their names in `distree.exit-rule`
RULES: Mapping[str, type[ScorePolicy]] = {kind.name: kind for kind in (OwnHead, Entropy, FeatureDifference, Gate)}
CALIBRATED = "calibrated"  # the operating point that devices use by default
LONGEST = 1 << 14  # characters of a policy's JSON, which comes from outside


class ExitPolicy(Protocol):
    """Decides at which exit samples leave one student. Frozen and hashable."""

    name: ClassVar[str]

    @property
    def num_exits(self) -> int:
        """Number of exits of the student that the policy is for."""

    def start(self, classify: Classify | None = None, ids: Sequence[int] = ()) -> Leaves:
        """Return the decisions for one batch: (exit index, features (b, P) of the samples left) -> bool (b,).

        Args:
            classify: needed by "entropy", "own-head" and "gate" only.
            ids: numbers of the batch's samples, needed by "random" only.

        Raises:
            UserError: an argument that the policy needs is missing.
        """

    def exits(self, features: Array, classify: Classify | None = None, ids: Sequence[int] = ()) -> Array:
        """Return the exit (from 0) where every sample leaves, int64 (N,), of features (J, N, P).

        The same decisions as those of `start`, for samples whose features of all exits are known.

        Raises:
            UserError: an argument that the policy needs is missing, or the number of exits differs.
        """

    def to_json(self) -> str:
        """Return the policy as one line of JSON, see `policy_from_json`."""


Policies = Mapping[int, ExitPolicy]  # student -> its exit policy


@dataclass(frozen=True)
class LastExit:
    """All samples go to the last exit."""

    num_exits: int
    name: ClassVar[str] = "last"

    def __post_init__(self) -> None:
        if self.num_exits < 1:
            raise UserError(f"an exit policy is for {self.num_exits} exits; a student has 1 or more")

    def start(self, classify: Classify | None = None, ids: Sequence[int] = ()) -> Leaves:
        """Return decisions that let no sample leave early."""
        return lambda exit_index, features: full(len(features), False, features, "bool")

    def exits(self, features: Array, classify: Classify | None = None, ids: Sequence[int] = ()) -> Array:
        """Return the last exit for all samples, int64 (N,), of features (J, N, P)."""
        check_exits(self.num_exits, len(features))
        return full(features.shape[1], self.num_exits - 1, features, "int64")

    def to_json(self) -> str:
        """Return the policy as one line of JSON."""
        return json.dumps({"policy": self.name, "num_exits": self.num_exits})


@dataclass(frozen=True)
class Random:
    """A sample's exit depends on its number and the seed, not on the batch that holds it."""

    shares: tuple[float, ...]  # how many leave at each exit, of any sum; the paper's baseline: (0, 1, 1, 1, 1, 1, 1)
    seed: int = 0
    name: ClassVar[str] = "random"

    def __post_init__(self) -> None:
        if not all(0 <= share < math.inf for share in self.shares) or not 0 < sum(self.shares) < math.inf:
            raise UserError("the shares of a random exit policy must be 0 or more, and not all 0")

    @property
    def num_exits(self) -> int:
        """Number of exits of the student that the policy is for."""
        return len(self.shares)

    def start(self, classify: Classify | None = None, ids: Sequence[int] = ()) -> Leaves:
        """Return the decisions for the batch of the samples `ids`."""
        staying = self._draw(ids)

        def leaves(exit_index: int, features: Array) -> Array:
            nonlocal staying
            _check_ids(len(staying), len(features))
            gone = staying <= exit_index
            staying = staying[~gone]
            return vector(gone, features, "bool")

        return leaves

    def exits(self, features: Array, classify: Classify | None = None, ids: Sequence[int] = ()) -> Array:
        """Return the drawn exits, int64 (N,), of the samples `ids`, whose features (J, N, P) do not matter."""
        check_exits(self.num_exits, len(features))
        _check_ids(len(ids), features.shape[1])
        return vector(self._draw(ids), features, "int64")

    def to_json(self) -> str:
        """Return the policy as one line of JSON."""
        return json.dumps({"policy": self.name, "shares": self.shares, "seed": self.seed})

    def _draw(self, ids: Sequence[int]) -> NDArray[np.int64]:
        drawn = np.array([derive_seed(self.seed, "random exit", i) / 2**63 for i in ids], np.float64)
        bounds = np.array(list(accumulate(self.shares)), np.float64)
        # Without the last bound, so that rounding moves no sample past the last exit.
        return np.searchsorted(bounds[:-1] / bounds[-1], drawn, side="right")


def oracle_exits(logits: Array, labels: Array) -> Array:
    """Return the first exit (from 0) that is right, else the last, int64 (N,): an upper bound for all policies.

    Args:
        logits: (J, N, classes), with all students stopping at the same exit.
        labels: (N,).
    """
    right = logits.argmax(-1) == labels
    right[-1] = True
    return first_true(right)


def remedy(name: str) -> str:
    """Return how students that are stored without a policy of this name get one, if it is a rule's name."""
    return f"; fit one by `python -m server calibrate ... -c distree.exit-rule={name}`" if name in RULES else ""


def policy_from_json(text: str) -> ExitPolicy:
    """Return the policy that `to_json` wrote; raises `UserError` when it is damaged or longer than `LONGEST`."""
    if len(text) > LONGEST:
        raise UserError(f"an exit policy has {len(text)} characters; at most {LONGEST} are allowed")
    try:
        values = json.loads(text)
        kind = values.pop("policy")
        return _READERS[kind](**values)
    except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise UserError("the exit policy is damaged; calibrate the students again") from error


def _read_last(num_exits: Any) -> LastExit:
    return LastExit(_whole(num_exits))


def _read_random(shares: Any, seed: Any) -> Random:
    return Random(tuple(float(share) for share in shares), _whole(seed))


def _read_scores(kind: type[ScorePolicy]) -> Any:
    return lambda thresholds: kind(_thresholds(thresholds))


def _read_gate(thresholds: Any, weights: Any) -> Gate:
    return Gate(_thresholds(thresholds), tuple(tuple(float(weight) for weight in row) for row in weights))


def _thresholds(values: Any) -> tuple[float, ...]:
    return tuple(math.inf if value is None else float(value) for value in values)


_READERS: dict[str, Any] = {
    LastExit.name: _read_last,
    Random.name: _read_random,
    **{name: _read_scores(kind) for name, kind in RULES.items()},
    Gate.name: _read_gate,
}


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _check_ids(given: int, samples: int) -> None:
    if given != samples:
        raise UserError(f"the random exit policy needs the number of every sample: {given} for {samples} samples")

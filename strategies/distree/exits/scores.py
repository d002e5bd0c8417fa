"""Exit policies that compare a score with a threshold: the paper's feature difference, and the entropy of two heads.

Source of the first: DistrEE (Peng et al., arXiv 2502.15735, section on the online exit policy). The others are ours.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from common.arrays import double, first_true, full, namespace, vector
from common.errors import UserError
from common.exits import confidence

Array = Any  # a torch tensor or a numpy array: a device that serves with ONNX has no torch
# (exit index from 0, features (b, |P_k|) of the samples left) -> bool (b,), which leave
Leaves = Callable[[int, Array], Array]


class Classify(Protocol):
    """What a student alone thinks."""

    def __call__(self, exit_index: int, features: Array, own: bool = False) -> Array:
        """Return logits (b, classes) of features (b, |P_k|) at an exit (from 0).

        Those of its columns of the common classifier, or with `own` those of its own head.
        """


def diff_cos(features: Array, first: Array) -> Array:
    """Return d = 1 / cos(F_j, F_1), float64 (B,) from 1 to inf, of features (B, P) that are not negative.

    A zero vector has no direction that could differ: d = 1, so the sample stays. The function uses few operations,
    because at batch 1 each costs as much as thousands of multiplications.
    """
    a, b, xp = double(features), double(first), namespace(features)
    squares = xp.linalg.vecdot(a, a) * xp.linalg.vecdot(b, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = xp.sqrt(squares) / xp.linalg.vecdot(a, b)
    return xp.nan_to_num(xp.clip(ratio, 1.0, None), nan=1.0, posinf=math.inf)


@dataclass(frozen=True)
class ScorePolicy(ABC):
    """A sample leaves at the first exit whose score is strictly greater than its threshold; the last exit takes all.

    Strictly, because d is exactly 1 at the first exit and its published threshold is 1: no sample leaves there.
    """

    thresholds: tuple[float, ...]  # T_j, one per exit but the last; `inf`: no sample leaves there

    name: ClassVar[str]
    first: ClassVar[int] = 1  # index of the first exit with a meaningful score

    def __post_init__(self) -> None:
        if not all(threshold > -math.inf for threshold in self.thresholds):
            raise UserError("an exit threshold is not a number; check that the students' features are finite")

    @property
    def num_exits(self) -> int:
        """Number of exits of the student that the policy is for."""
        return len(self.thresholds) + 1

    @abstractmethod
    def score(self, exit_index: int, features: Array, reference: Array | None, classify: Classify | None) -> Array:
        """Return the scores, float64 (b,), of features (b, P) and the reference (b, P), which is None at exit 0.

        Raises `UserError` without `classify` if the policy needs it.
        """

    def reference(self, features: Array, reference: Array | None) -> Array:
        """Return the reference for the next exit's features: these features."""
        return features

    def scores(self, features: Array, classify: Classify | None = None) -> Array:
        """Return the scores of all exits, float64 (J, N), of features (J, N, P)."""
        reference: Array | None = None
        found: list[Array] = []
        for index, at_exit in enumerate(features):
            found.append(self.score(index, at_exit, reference, classify))
            reference = self.reference(at_exit, reference)
        return namespace(features).stack(found)

    def start(self, classify: Classify | None = None, ids: Sequence[int] = ()) -> Leaves:
        """Return the decisions for one batch, see `ExitPolicy.start`."""
        return _Batch(self, classify)

    def exits(self, features: Array, classify: Classify | None = None, ids: Sequence[int] = ()) -> Array:
        """Return the exit (from 0) where every sample leaves, int64 (N,), of features (J, N, P)."""
        check_exits(self.num_exits, len(features))
        return self.exits_by(self.scores(features, classify))

    def exits_by(self, scores: Array) -> Array:
        """Return the same as `exits`, int64 (N,), from scores (J, N)."""
        leaves = scores[:-1] > vector(self.thresholds, scores, "float64")[:, None]
        last = full(scores.shape[1], True, scores, "bool")[None]
        return first_true(namespace(scores).concat([leaves, last]))  # the shallowest exit whose threshold is passed

    def to_json(self) -> str:
        """Return the policy as strict JSON (an infinite threshold becomes null)."""
        return json.dumps({"policy": self.name, **self.plain()}, allow_nan=False)

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {"thresholds": [None if math.isinf(threshold) else threshold for threshold in self.thresholds]}


class _Batch:
    """A score policy on its way through the exits, with the reference rows of the samples that stay."""

    def __init__(self, policy: ScorePolicy, classify: Classify | None) -> None:
        self.policy, self.classify = policy, classify
        self.reference: Array | None = None

    def __call__(self, exit_index: int, features: Array) -> Array:
        threshold = self.policy.thresholds[exit_index]
        if threshold == math.inf:  # no sample leaves: save the time for the score
            self.reference = self.policy.reference(features, self.reference)
            return full(len(features), False, features, "bool")
        leaves = self.policy.score(exit_index, features, self.reference, self.classify) > threshold
        self.reference = self.policy.reference(features, self.reference)[~leaves]
        return leaves


@dataclass(frozen=True)
class FeatureDifference(ScorePolicy):
    """DistrEE's policy: how far the features have moved away from those of the first exit, d = 1 / cos(F_j, F_1)."""

    name: ClassVar[str] = "difference"

    def score(self, exit_index: int, features: Array, reference: Array | None, classify: Classify | None) -> Array:
        """Return d, see `diff_cos`; exactly 1 at the first exit."""
        if reference is None:
            return full(len(features), 1.0, features, "float64")
        return diff_cos(features, reference)

    def reference(self, features: Array, reference: Array | None) -> Array:
        """Return F_1."""
        return features if reference is None else reference


@dataclass(frozen=True)
class HeadPolicy(ScorePolicy):
    """A score policy that asks what the student alone thinks."""

    first: ClassVar[int] = 0

    def start(self, classify: Classify | None = None, ids: Sequence[int] = ()) -> Leaves:
        """Return the decisions for one batch; raises `UserError` without `classify`."""
        return super().start(self._needed(classify))

    def _needed(self, classify: Classify | None) -> Classify:
        if classify is None:
            raise UserError(
                f"the policy {self.name!r} needs a classifier, and there is none: use the difference policy"
            )
        return classify


@dataclass(frozen=True)
class Entropy(HeadPolicy):
    """Confidence of the student's columns of the common classifier, 1 - H / log C; final if it is the only student."""

    name: ClassVar[str] = "entropy"
    own: ClassVar[bool] = False  # whether the student's own heads are asked

    def score(self, exit_index: int, features: Array, reference: Array | None, classify: Classify | None) -> Array:
        """Return 1 - H / log C, in [0, 1]; raises `UserError` without `classify`."""
        return confidence(double(self._needed(classify)(exit_index, features, self.own)), "entropy")


@dataclass(frozen=True)
class OwnHead(Entropy):
    """Confidence of the student's own head at the exit, which has learnt to classify by this student alone."""

    name: ClassVar[str] = "own-head"
    own: ClassVar[bool] = True


def check_exits(policy: int, student: int) -> None:
    """Raise `UserError` unless a policy is for as many exits as the student has."""
    if policy != student:
        raise UserError(f"the exit policy is for {policy} exits, the student has {student}; calibrate it again")

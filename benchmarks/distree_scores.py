"""Exit rules that are measured beside the product's: the paper's baseline, and a gate that is trained for this."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from common.exits import confidence
from common.seeding import generator
from strategies.distree.exits.calibration import Answers
from strategies.distree.exits.policies import Classify
from strategies.distree.exits.scores import ScorePolicy

FOLDS = 5


@dataclass(frozen=True)
class NeighbourSimilarity(ScorePolicy):
    """The paper's baseline: the features have settled, cos(F_j, F_{j-1}) > T_j; no sample leaves at the first exit."""

    name: ClassVar[str] = "neighbour"

    def score(self, exit_index: int, features: Tensor, reference: Tensor | None, classify: Classify | None) -> Tensor:
        """Return the cosine to the previous exit's features; -inf at the first exit."""
        if reference is None:
            return torch.full((len(features),), -math.inf, dtype=torch.float64)
        return F.cosine_similarity(features.double(), reference.double(), dim=1)


@dataclass(frozen=True)
class Judged(Answers):
    """Answers with the gate's scores."""

    gate: Mapping[int, Tensor] = field(default_factory=dict)  # student -> float64 (J, N)

    def classify(self, number: int) -> Classify:
        """Return what student `number` alone thinks, with the gate's scores."""
        return _Thinks(super().classify(number), self.gate[number])

    def rows(self, rows: Tensor) -> "Judged":
        """Return the answers to some of the samples."""
        return Judged(
            {k: f[:, rows] for k, f in self.features.items()}, self.labels[rows], self.classifier, self.own,
            self.costs, gate={k: scores[:, rows] for k, scores in self.gate.items()},
        )  # fmt: skip


class _Thinks:
    def __init__(self, classify: Classify, gate: Tensor) -> None:
        self._classify, self.gate = classify, gate

    def __call__(self, exit_index: int, features: Tensor, own: bool = False) -> Any:
        return self._classify(exit_index, features, own)


@dataclass(frozen=True)
class Gate(ScorePolicy):
    """A logistic regression, per student and exit, on numbers that the device has: is the common answer right here?"""

    name: ClassVar[str] = "gate"
    first: ClassVar[int] = 0

    def score(self, exit_index: int, features: Tensor, reference: Tensor | None, classify: Classify | None) -> Tensor:
        """Refuse: the scores come with the answers, see `Judged`."""
        raise NotImplementedError

    def scores(self, features: Tensor, classify: Classify | None = None) -> Tensor:
        """Return the gate's scores, float64 (J, N)."""
        assert isinstance(classify, _Thinks)
        return classify.gate


def numbers(answers: Answers, student: int) -> Tensor:
    """Return the 15 numbers that a device has about each sample at each exit, float64 (J, N, 15).

    Of its own head and of its columns of the classifier: entropy, largest probability, its lead, and the largest logit.
    Of the features: 1/d to the first exit, cosine to the exit before, length, share of zeros. Whether the own head's
    class is that of the columns, and that of the exit before; the own head's confidence at the exit before.
    """
    features, classify = answers.features[student], answers.classify(student)
    first, found = features[0], list[Tensor]()
    before, classes, sure = first, torch.full((features.shape[1],), -1), torch.zeros(features.shape[1])
    for j, at_exit in enumerate(features):
        own, columns = classify(j, at_exit, own=True), classify(j, at_exit)
        now = own.argmax(1)
        found.append(
            torch.stack(
                [
                    *_about(own), *_about(columns),
                    F.cosine_similarity(at_exit, first, dim=1), F.cosine_similarity(at_exit, before, dim=1),
                    at_exit.norm(dim=1), (at_exit == 0).float().mean(1),
                    (now == columns.argmax(1)).float(), (now == classes).float(), sure,
                ],
                dim=1,
            )
        )  # fmt: skip
        before, classes, sure = at_exit, now, confidence(own, "entropy")
    return torch.stack(found).double()


def _about(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    best = logits.softmax(1).topk(2, dim=1).values
    return confidence(logits, "entropy"), best[:, 0], best[:, 0] - best[:, 1], logits.amax(1)


def judge(validation: Answers, test: Answers) -> tuple[Judged, Judged]:
    """Return both with the gates' scores: cross-fitted on validation samples; for others, gates of all of these."""
    right = (torch.stack(list(validation.votes().values())).sum(0).argmax(-1) == validation.labels).numpy()
    own, other = dict[int, Tensor](), dict[int, Tensor]()
    for k in validation.features:
        seen, unseen = numbers(validation, k), numbers(test, k)
        own[k] = torch.stack([cross_fitted(x, right[j]) for j, x in enumerate(seen)])
        other[k] = torch.stack([_fitted(x, right[j], y) for j, (x, y) in enumerate(zip(seen, unseen, strict=True))])
    return _with(validation, own), _with(test, other)


def cross_fitted(x: Tensor, right: Any) -> Tensor:
    """Return scores (N,) of samples (N, n) by gates that were fitted on the other folds."""
    scores = torch.zeros(len(x), dtype=torch.float64)
    folds = torch.randperm(len(x), generator=generator("folds", 1)).chunk(FOLDS)
    for at, fold in enumerate(folds):
        others = torch.cat([one for index, one in enumerate(folds) if index != at])
        scores[fold] = _fitted(x[others], right[others.numpy()], x[fold])
    return scores


def _fitted(x: Tensor, right: Any, asked: Tensor) -> Tensor:
    gate = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(x.numpy(), right)
    return torch.from_numpy(gate.decision_function(asked.numpy()))


def _with(answers: Answers, gate: Mapping[int, Tensor]) -> Judged:
    return Judged(**{each.name: getattr(answers, each.name) for each in fields(answers)}, gate=gate)

"""The gate: a logistic regression, per student and exit, on numbers that the device has. Ours, not the paper's.

It is fitted after the training, see `gate_fit.py`, and its weights are part of the policy: files, exports and messages
that hold policies hold the gate.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from common.arrays import double, entropy, namespace, quick, softmax, two_largest, vector
from common.errors import UserError
from strategies.distree.exits.scores import Array, Classify, HeadPolicy

COUNT = 15  # of the numbers
TINY = 1e-30  # so that a zero vector has cosine 0


@dataclass(frozen=True)
class Gate(HeadPolicy):
    """A sample leaves where its common answer, if all students left there, is probably right."""

    weights: tuple[tuple[float, ...], ...]  # one row per exit: of the numbers, then the bias

    name: ClassVar[str] = "gate"

    def __post_init__(self) -> None:
        super().__post_init__()
        complete = len(self.weights) == self.num_exits and {len(row) for row in self.weights} == {COUNT + 1}
        if not complete or not all(math.isfinite(weight) for row in self.weights for weight in row):
            raise UserError(f"a gate needs {COUNT + 1} finite weights per exit; calibrate the students again")

    def score(self, exit_index: int, features: Array, reference: Array | None, classify: Classify | None) -> Array:
        """Return the log-odds of a right answer; raises `UserError` without `classify`."""
        size = features.shape[1]
        first, before = (features, features) if reference is None else (reference[:, :size], reference[:, size:])
        x = gate_numbers(exit_index, features, first, before, self._needed(classify))
        weights = vector(self.weights[exit_index], x, "float64")
        return namespace(features).asarray(x @ weights[:-1] + weights[-1])

    def reference(self, features: Array, reference: Array | None) -> Array:
        """Return the features of the first exit and these, side by side (b, 2P)."""
        first = features if reference is None else reference[:, : features.shape[1]]
        return namespace(features).concat([first, features], -1)

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return super().plain() | {"weights": self.weights}


def gate_numbers(exit_index: int, features: Array, first: Array, before: Array, classify: Classify) -> Array:
    """Return what a device has about each sample at an exit, float64 (b, 15); numpy's for tensors of the processor.

    Of its own head, then of its columns of the classifier: entropy, largest probability, its lead, largest logit.
    Of the features: cosine to the first exit and to the exit before, length, share of zeros. Whether the own head's
    class is that of the columns, and that of the exit before; the own head's confidence at the exit before.

    Args:
        exit_index: from 0.
        features: (b, P).
        first: features of the first exit (b, P).
        before: features of the exit before (b, P); at the first exit those of that exit.
        classify: what the student alone thinks.
    """
    stack = namespace(features).stack
    # at batch 1 the number of operations decides how long they take: three heads and three features go together
    own, columns = classify(exit_index, features, own=True), classify(exit_index, features)
    logits = double(quick(stack([own, columns, classify(max(exit_index - 1, 0), before, own=True)])))
    vectors = double(quick(stack([features, first, before])))
    xp, likely = namespace(logits), softmax(logits)
    sure, largest, classes = 1 - entropy(likely) / math.log(logits.shape[-1]), two_largest(likely), logits.argmax(-1)
    heads = (sure, largest[..., 0], largest[..., 0] - largest[..., 1], xp.amax(logits, -1))
    length = xp.sqrt(xp.linalg.vecdot(vectors, vectors))
    cosine = xp.linalg.vecdot(vectors[0], vectors) / xp.clip(length[0] * length, TINY, None)
    found = [
        *(number[0] for number in heads), *(number[1] for number in heads),
        cosine[1], cosine[2], length[0], double(vectors[0] == 0).mean(-1),
        double(classes[0] == classes[1]), double(classes[0] == classes[2]), sure[2],
    ]  # fmt: skip
    return xp.stack(found, -1)

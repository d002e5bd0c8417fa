"""A data set as its source gives it: encoded images or texts and integer labels, before anything is decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed

Encoded = bytes | Path | NDArray[np.uint8]
"""One image: the bytes of an image file, the path of one, or grey pixels (H, W)."""
Sample = Encoded | str
"""An image or a text."""

TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class RawSplit:
    """n encoded images or n texts, labels (n,) and, where asked for, the natural client of each sample (n,)."""

    samples: Sequence[Sample]
    labels: NDArray[np.int64]
    natural: NDArray[np.generic] | None = None

    def take(self, indices: NDArray[np.int64]) -> RawSplit:
        """Return the samples at `indices`."""
        natural = None if self.natural is None else self.natural[indices]
        return RawSplit([self.samples[i] for i in indices], self.labels[indices], natural)


@dataclass(frozen=True, eq=False)
class RawSet:
    """A training split, a test split where the source has one, and class names in the order of the labels."""

    train: RawSplit
    test: RawSplit | None
    classes: tuple[str, ...]


def merged(train: RawSplit, test: RawSplit) -> RawSplit:
    """Return one split with the training samples first."""
    natural = None
    if train.natural is not None and test.natural is not None:
        natural = np.concatenate([train.natural, test.natural])
    return RawSplit([*train.samples, *test.samples], np.concatenate([train.labels, test.labels]), natural)


def split_off_test(split: RawSplit) -> tuple[RawSplit, RawSplit]:
    """Set a fifth of each class aside as the test set; the same fifth in every run, on every machine."""
    test = []
    for label in np.unique(split.labels):
        members = np.flatnonzero(split.labels == label)
        order = np.random.default_rng(derive_seed("test split", int(label))).permutation(members)
        test.append(order[: round(TEST_SHARE * len(members))])
    chosen = np.zeros(len(split.labels), dtype=bool)
    chosen[np.concatenate(test)] = True
    return split.take(np.flatnonzero(~chosen)), split.take(np.flatnonzero(chosen))


def first(split: RawSplit, limit: int) -> RawSplit:
    """Return the first `limit` samples (0 = all).

    A set stored class by class is read across its classes, else the first n images would all show the same thing.
    """
    if limit == 0 or limit >= len(split.labels):
        return split
    labels = split.labels
    if np.all(labels[1:] >= labels[:-1]):
        _, starts, counts = np.unique(labels, return_index=True, return_counts=True)
        rank_in_class = np.arange(len(labels)) - np.repeat(starts, counts)
        return split.take(np.sort(np.argsort(rank_in_class, kind="stable")[:limit]))
    return split.take(np.arange(limit))

"""A data set as its source stores it: encoded images or texts and integer labels, before decoding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed

Encoded = bytes | Path | NDArray[np.uint8]  # one image: a file's bytes, its path, or pixels (H, W), (H, W, 3)
Sample = Encoded | str  # an image or a text

TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class RawSplit:
    """Encoded images or texts of one split."""

    samples: Sequence[Sample]  # n encoded images or n texts
    labels: NDArray[np.int64]  # (n,)
    natural: NDArray[np.generic] | None = None  # (n,), the natural client of each sample, if requested

    def take(self, indices: NDArray[np.int64]) -> RawSplit:
        """Return the samples at `indices`."""
        natural = None if self.natural is None else self.natural[indices]
        return RawSplit([self.samples[i] for i in indices], self.labels[indices], natural)


@dataclass(frozen=True, eq=False)
class RawSet:
    """A set of one source."""

    train: RawSplit
    test: RawSplit | None  # None: the source has no test split
    classes: tuple[str, ...]  # names in the order of the labels
    notes: tuple[str, ...] = ()  # a sentence for whatever the source holds that was left out or changed, with numbers
    validation: RawSplit | None = None  # besides a test split; None: the source has none
    digest: str = ""  # of samples and labels as they are used, before decoding


def content_digest(*splits: RawSplit) -> str:
    """Return a digest of samples, labels and natural clients, the same for a copy of the set on any machine."""
    total = hashlib.sha256()
    for split in splits:
        natural = [] if split.natural is None else split.natural.tolist()
        total.update(repr((split.labels.tolist(), natural)).encode())
        for sample in split.samples:
            content = _content(sample)
            total.update(len(content).to_bytes(8) + content)
    return total.hexdigest()


def _content(sample: Sample) -> bytes:
    if isinstance(sample, Path):
        try:
            return sample.read_bytes()
        except OSError:
            return b""  # the decoder reports the file
    if isinstance(sample, np.ndarray):
        return sample.tobytes()
    return sample.encode("utf-8", "surrogatepass") if isinstance(sample, str) else sample


def merged(train: RawSplit, test: RawSplit) -> RawSplit:
    """Return one split with the training samples first."""
    natural = None
    if train.natural is not None and test.natural is not None:
        natural = np.concatenate([train.natural, test.natural])
    return RawSplit([*train.samples, *test.samples], np.concatenate([train.labels, test.labels]), natural)


def split_off_test(split: RawSplit) -> tuple[RawSplit, RawSplit]:
    """Return (training, test): a fifth of each class, the same in every run and on every machine, is for testing."""
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

    A set stored class by class, in any order of the classes, is read across them: otherwise its first n samples would
    all be of one class.
    """
    if limit == 0 or limit >= len(split.labels):
        return split
    labels = split.labels
    classes, starts, index = np.unique(labels, return_index=True, return_inverse=True)
    if np.count_nonzero(labels[1:] != labels[:-1]) == len(classes) - 1:
        rank_in_class = np.arange(len(labels)) - starts[index]
        return split.take(np.sort(np.argsort(rank_in_class, kind="stable")[:limit]))
    return split.take(np.arange(limit))

"""The set that a configuration names, as torch's tensors; `arrays.py` reads it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.arrays import ArraySet, LabelledArrays, load_arrays
from common.data.images import SampleSet
from common.sections.data import DataConfig


@dataclass(frozen=True, eq=False)
class TrainTest:
    """A whole set."""

    train: SampleSet  # dealt to clients
    test: SampleSet  # the server's test set; empty with data.client-test
    # the natural client of each training sample (N,), integers or text; None unless data.partitioner is natural
    natural: NDArray[np.generic] | None = None
    notes: tuple[str, ...] = ()  # a sentence for whatever was left out or changed, with numbers
    validation: SampleSet | None = None  # the set's own validation split; None: it has none besides the test set
    digest: str = ""  # of samples and labels before decoding, see `content_digest`

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.train.classes

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W), or (L,) of texts."""
        return self.train.shape


def load(config: DataConfig, cache: Path | None) -> TrainTest:
    """Return what `load_arrays` returns, as tensors that share its memory; the same object while the arrays are."""
    return _tensors(load_arrays(config, cache))


@lru_cache(maxsize=4)
def _tensors(found: ArraySet) -> TrainTest:
    def samples(split: LabelledArrays) -> SampleSet:
        return SampleSet(torch.from_numpy(split.inputs), torch.from_numpy(split.labels), found.classes)

    validation = None if found.validation is None else samples(found.validation)
    return TrainTest(samples(found.train), samples(found.test), found.natural, found.notes, validation, found.digest)

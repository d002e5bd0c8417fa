"""What was read: classes with counts, shape, samples per client and notes, for log, run folder, report and terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.data.support import counted, listed
from common.sections.data import DataConfig

if TYPE_CHECKING:  # it imports torch
    from common.data.dataset import TrainTest

_SHOWN = 20  # classes, each with its counts


@dataclass(frozen=True)
class Dealt:
    """How many samples clients have, before they keep some for validation or testing."""

    clients: int
    least: int
    median: float
    most: int
    empty: tuple[int, ...]  # clients without samples

    @staticmethod
    def of(parts: Sequence[NDArray[np.int64]]) -> Dealt:
        """Return the numbers of a partition."""
        sizes = [len(part) for part in parts]
        empty = tuple(client for client, size in enumerate(sizes) if not size)
        return Dealt(len(sizes), min(sizes), median(sizes), max(sizes), empty)

    def __str__(self) -> str:
        numbers = f"{self.clients} clients: least {self.least}, median {self.median:g}, most {self.most} samples"
        if not self.empty:
            return numbers
        return f"{numbers}; {len(self.empty)} without samples ({listed([str(client) for client in self.empty])})"


@dataclass(frozen=True)
class DataSummary:
    """A set as it was read."""

    name: str  # data.name
    root: str  # data.root
    shape: tuple[int, ...]  # (C, H, W), or (L,) of texts
    classes: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]  # split -> samples per class
    dealt: Dealt | None  # None: no virtual clients
    notes: tuple[str, ...]
    digest: str  # of samples and labels before decoding; "" if the server has none

    @staticmethod
    def of(config: DataConfig, source: TrainTest, dealt: Dealt | None, *more: str) -> DataSummary:
        """Return the summary of a set; `more` are notes besides its own."""
        splits = {"train": source.train, "validation": source.validation, "test": source.test}
        counts = {
            name: tuple(np.bincount(split.labels.numpy(), minlength=len(source.classes)).tolist())
            for name, split in splits.items()
            if split is not None and len(split)
        }
        notes = (*source.notes, *more)
        return DataSummary(
            config.name, config.root, source.input_shape, source.classes, counts, dealt, notes, source.digest
        )

    @staticmethod
    def from_json(text: str) -> DataSummary:
        """Return what `to_json` wrote. Raises ValueError, KeyError or TypeError if the text is something else."""
        facts = json.loads(text)
        del facts["lines"]
        dealt = facts["dealt"] and Dealt(**facts["dealt"] | {"empty": tuple(facts["dealt"]["empty"])})
        counts = {name: tuple(numbers) for name, numbers in facts["counts"].items()}
        tuples = {name: tuple(facts[name]) for name in ("shape", "classes", "notes")}
        return DataSummary(**facts | tuples | {"dealt": dealt, "counts": counts})

    def to_json(self) -> str:
        """Return all facts, and the lines for readers that do not import this module."""
        return json.dumps(asdict(self) | {"lines": self.lines()})

    def lines(self) -> list[str]:
        """Return what a log shows."""
        shown = listed([f"{name} {'/'.join(map(str, row))}" for name, row in self.rows()], _SHOWN)
        order = f" ({'/'.join(self.counts)})" if self.counts else ""
        return [self.headline(), f"  classes{order}: {shown}", *(f"  {line}" for line in self.closing())]

    def headline(self) -> str:
        """Return the set's name, size and shape."""
        sizes = ", ".join(f"{sum(row)} {name}" for name, row in self.counts.items()) or "no samples on the server"
        where = f" in {self.root}" if self.root else ""
        return f"data {self.name}{where}: {sizes}; {len(self.classes)} classes; {self.kind()}"

    def kind(self) -> str:
        """Return what one sample is."""
        if len(self.shape) == 1:
            return f"texts, {counted(self.shape[0], 'token')} of each"
        channels, height, width = self.shape
        return f"{'grey' if channels == 1 else 'RGB'} images of {width}x{height}"

    def rows(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return each class with its samples per split."""
        return [(name, tuple(row[label] for row in self.counts.values())) for label, name in enumerate(self.classes)]

    def closing(self) -> list[str]:
        """Return samples per client, and the notes."""
        return [*([str(self.dealt)] if self.dealt else []), *(f"note: {note}" for note in self.notes)]

    def differences(self, now: DataSummary) -> list[str]:
        """Return how a set differs from this earlier one, apart from its place and its notes."""
        found = []
        before, after = set(self.classes), set(now.classes)
        for word, names in (("added", after - before), ("gone", before - after)):
            if names:
                found.append(f"classes {word}: {listed(sorted(names))}")
        if not found and self.classes != now.classes:
            found.append("its classes are in another order")
        for name in {**self.counts, **now.counts}:
            old, new = sum(self.counts.get(name, ())), sum(now.counts.get(name, ()))
            if old != new:
                found.append(f"{new} {name} samples in place of {old}")
        if self.shape != now.shape:
            found.append(f"{now.kind()} in place of {self.kind()}")
        if not found and self.digest != now.digest:
            found.append("the same number of samples, but other samples, labels or clients' names")
        return found

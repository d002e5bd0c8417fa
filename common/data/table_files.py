"""Which tables of a folder hold its training and test samples, whole series of shards only."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from common.data.support import listed
from common.data.tree import entries
from common.errors import UserError

TRAIN, TESTS = "train", ("test", "val")  # beginnings of names; the first kind of test files that exists is used
SHARD = re.compile(r"(?P<base>.*?)-(?P<number>\d+)-of-(?P<total>\d+)(?!\d)")
ASIDE = (".md", ".txt", ".rst", ".yml", ".yaml")  # descriptions that usually lie beside tables
SHOWN = 10  # absent shards in a message


@dataclass(frozen=True)
class TableFiles:
    """The tables of a folder by split, in the order of their names."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]  # empty: the folder has none
    notes: tuple[str, ...]


def tables(root: Path, suffix: str) -> list[Path]:
    """Return the visible files with this suffix in a folder, sorted by name; raises `UserError` if it is unreadable."""
    return sorted(
        root / entry.name for entry in _visible(root) if Path(entry.name).suffix.lower() == suffix and entry.is_file()
    )


def _visible(root: Path) -> Iterator[os.DirEntry[str]]:
    return (entry for entry in entries(root) if not entry.name.startswith("."))


def find_tables(root: Path, suffix: str, *, loose: bool) -> TableFiles:
    """Return the training and test tables of a folder.

    `loose` takes every name that begins as a split's does; otherwise names are train, training, test, testing, val,
    valid or validation, alone or as shards. Raises `UserError` when a shard is absent or there twice, and for a folder
    that cannot be read.
    """
    files = tables(root, suffix)
    train = _of(files, TRAIN, loose)
    test = next((found for name in TESTS if (found := _of(files, name, loose))), [])
    notes = [note for split in (train, test) for note in _check_series(split)]
    used = {*train, *test}
    others = sorted(
        entry.name + "/" * entry.is_dir()
        for entry in _visible(root)
        if root / entry.name not in used and Path(entry.name).suffix.lower() not in ASIDE
    )
    if others and used:
        notes.append(f"{len(others)} other files or folders in {root} are not used: {listed(others)}")
    return TableFiles(tuple(train), tuple(test), tuple(notes))


def _of(files: Sequence[Path], name: str, loose: bool) -> list[Path]:
    pattern = name if loose else rf"{name}(ing|id|idation)?(-\d+-of-\d+)?\.[^.]+$"
    return [file for file in files if re.match(pattern, file.name, re.IGNORECASE)]


def _check_series(files: Sequence[Path]) -> Iterator[str]:
    series = defaultdict[tuple[str, int], dict[int, Path]](dict)
    for file in files:
        if found := SHARD.match(file.name):
            known = series[found["base"], int(found["total"])]
            number = int(found["number"])
            if number in known:
                raise UserError(f"{file} and {known[number].name} are the same shard: keep one of them")
            known[number] = file
    for (base, total), shards in series.items():
        first = 1 if total in shards else 0  # some programs count from 1
        absent = total - sum(first <= number < first + total for number in shards)
        if absent:
            example = next(iter(shards.values()))
            numbers = (number for number in range(first, first + total) if number not in shards)
            names = ", ".join(_name(example, base, number) for number in islice(numbers, SHOWN))
            raise UserError(
                f"{example.parent}: {absent} of the {total} shards of {base!r} are absent ({names}"
                f"{', ...' if absent > SHOWN else ''}): add them"
            )
    if len(files) > 1 and (len(series) != 1 or sum(map(len, series.values())) != len(files)):
        yield f"files that are no single series are read as one split: {listed([file.name for file in files])}"


def _name(example: Path, base: str, number: int) -> str:
    """Return the name of another shard of an example's series."""
    return SHARD.sub(lambda found: f"{base}-{number:0{len(found['number'])}d}-of-{found['total']}", example.name, 1)

"""The samples to classify: a folder of images, or a data set's test split."""

import argparse
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from common import paths
from common.data import DataConfig, load
from common.data.decode import Decoding, decode
from common.data.tree import SHOWN_SUFFIXES, walk
from common.errors import UserError
from common.sections.data_sets import DEVICES
from common.settings import read_section

T = TypeVar("T")
Unreadable = Callable[[Path, str], None]
Classes = tuple[str, ...]
Shape = tuple[int, ...]


class Skipped:
    """Files that cannot be read, by name; each is reported as soon as it is found."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}

    def __call__(self, file: Path, reason: str) -> None:
        """Skip a file, relative to the folder."""
        self.reasons[str(file)] = reason
        print(f"skipped: {reason}", file=sys.stderr)

    def all_of(self, folder: Path) -> UserError:
        """Return the error to raise when no readable file is left."""
        return UserError(f"none of the {len(self.reasons)} images in {folder} can be read: replace them")


@dataclass(frozen=True)
class Samples:
    """A batch of images that fit the network."""

    names: list[str]  # relative to the folder; of a data set the number in its test split
    truths: list[str | None]  # class names; None where unknown
    pixels: Tensor  # uint8 (b, C, H, W)

    def __len__(self) -> int:
        return len(self.names)


def read(options: argparse.Namespace, classes: Classes, shape: Shape, skip: Unreadable) -> Iterator[Samples]:
    """Yield batches of the samples that the options name, as a model takes them; a folder is decoded batch by batch.

    Images get the size and channels that the network takes, those of a data set only the size. `skip` is called with
    each unreadable file, relative to the folder, and the reason.
    Raises `UserError` for a missing or empty source, and for a data set with other classes.
    """
    for name, least in (("batch", 1), ("limit", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: give {least} or more")
    if len(shape) != 3:
        raise UserError(f"--model {options.model} classifies texts, this command only images: give an image model")
    if options.dataset:
        return from_dataset(options.dataset, classes, shape, options.batch, options.limit)
    files = find_images(options.images)
    return from_folder(options.images, spread(files, options.limit), classes, shape, options.batch, skip)


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted; raises `UserError` without any."""
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder: give a folder that holds images")
    tree = walk(folder)
    if not tree.images:
        found = "".join(f"; {note}" for note in tree.notes())
        raise UserError(f"--images {folder} holds no images: put {SHOWN_SUFFIXES} there{found}")
    _print(tree.notes())
    return tree.images


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Return `limit` items at even distances, so that a set in class order keeps all its classes; 0: all."""
    number = len(items)
    return [items[i * number // limit] for i in range(limit)] if 0 < limit < number else list(items)


def from_folder(
    folder: Path,
    files: Sequence[Path],
    classes: Classes,
    shape: Shape,
    size: int,
    skip: Unreadable = lambda path, reason: None,
) -> Iterator[Samples]:
    """Yield the readable images of `files` below `folder`; the deepest folder named like a class is the truth."""
    channels, height, width = shape
    known = {_spelled(name.replace("/", "-")): name for name in classes}
    decoding = Decoding(files)
    batch: list[tuple[str, str | None, np.ndarray[Any, np.dtype[np.uint8]]]] = []
    for path in files:
        inside = path.relative_to(folder)
        pixels = next(decode([path], (channels, height, width), resize=True, where="image", part_of=decoding), None)
        if pixels is None:
            skip(inside, str(decoding.damaged.pop()))
            continue
        truth = next((known[part] for part in map(_spelled, reversed(inside.parts[:-1])) if part in known), None)
        batch.append((str(inside), truth, pixels))
        if len(batch) == size:
            yield _samples(batch)
            batch = []
    if batch:
        yield _samples(batch)
    _print(decoding.notes())


def _spelled(name: str) -> str:
    """Return a name in the one Unicode form in which class names are compared."""
    return unicodedata.normalize("NFC", name)


def _print(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def from_dataset(text: str, classes: Classes, shape: Shape, size: int, limit: int) -> Iterator[Samples]:
    """Return an iterator over a data set's test split. Raises `UserError` when it does not fit the network."""
    name, _, folder = text.partition(":")
    _, height, width = shape
    side = height if height == width else 0
    root = str(Path(folder).absolute()) if folder else ""
    found = read_section(DataConfig, name=name, root=root, image_size=side)
    config, problem = found.section, "; ".join(found.problems)
    problem = problem.replace("data.root", "--dataset NAME:FOLDER").replace("data.name", "--dataset")
    if problem or config.is_text or name == DEVICES:
        raise UserError(problem or f"--dataset {name} holds no images: give a data set of images")
    test = load(config, paths.cache_root()).test
    if test.shape != shape:
        raise UserError(f"--dataset {name} has images of {test.shape}, but the network takes {shape}: give another set")
    if unknown := sorted(set(test.classes) - set(classes)):
        raise UserError(
            f"--dataset {name} has the class {unknown[0]!r}, the model does not: give the set it was trained on"
        )
    chosen = spread(range(len(test)), limit)
    return _from_set(test.inputs, [test.classes[label] for label in test.labels.tolist()], chosen, size)


def _from_set(pixels: Tensor, truths: Sequence[str], chosen: Sequence[int], size: int) -> Iterator[Samples]:
    for start in range(0, len(chosen), size):
        rows = list(chosen[start : start + size])
        yield Samples([str(row) for row in rows], [truths[row] for row in rows], pixels[rows])


def _samples(batch: Sequence[tuple[str, str | None, np.ndarray[Any, np.dtype[np.uint8]]]]) -> Samples:
    names, truths, pixels = zip(*batch, strict=True)
    return Samples(list(names), list(truths), torch.from_numpy(np.stack(pixels)))

"""The samples to classify: a folder of images or of text files, or a data set's test split."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from common import paths, plugins
from common.data import DataConfig
from common.data.arrays import load_arrays
from common.data.decode import Decoding, decode
from common.data.text import read_text, token_ids
from common.data.tree import SHOWN_SUFFIXES, TEXT_SUFFIX, Tree, walk
from common.errors import UserError
from common.sections.data import folder_name
from common.sections.data_sets import DEVICES, NAMES
from common.settings import read_section

T = TypeVar("T")
Unreadable = Callable[[Path, str], None]
Classes = tuple[str, ...]
Shape = tuple[int, ...]
Row = tuple[str, str | None, NDArray[Any]]  # a sample's name, its class if known, and the network's input


class Takes(NamedTuple):
    """What a network takes."""

    shape: Shape  # (C, H, W), or (L,) of a text's token ids
    vocabulary: int = 0  # number of token ids; 0: images

    @property
    def kind(self) -> str:
        """What a user calls the samples: "images" or "texts"."""
        return "texts" if self.vocabulary else "images"


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
        return UserError(f"none of the {len(self.reasons)} files in {folder} can be read: replace them")


@dataclass(frozen=True)
class Samples:
    """A batch of samples that fit the network."""

    names: list[str]  # relative to the folder; of a data set the number in its test split
    truths: list[str | None]  # class names; None where unknown
    inputs: NDArray[Any]  # uint8 (b, C, H, W) pixels or int32 (b, L) token ids

    def __len__(self) -> int:
        return len(self.names)


def read(options: argparse.Namespace, classes: Classes, takes: Takes, skip: Unreadable) -> Iterator[Samples]:
    """Yield batches of the samples that the options name, as a model takes them; a folder is decoded batch by batch.

    Images get the size and channels that the network takes, those of a data set only the size. `skip` is called with
    each unreadable file, relative to the folder, and the reason.
    Raises `UserError` for a missing or empty source, for samples of another kind, and for a set with other classes.
    """
    for name, least in (("batch", 1), ("limit", 0)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: give {least} or more")
    if options.column and not (options.dataset and takes.kind == "texts"):
        raise UserError(f"--column {options.column} names the texts of a --dataset: leave it out for other samples")
    if options.dataset:
        return from_dataset(options.dataset, classes, takes, options.batch, options.limit, options.column)
    folder, kind = (options.texts, "texts") if options.texts else (options.images, "images")
    if kind != takes.kind:
        raise UserError(f"--{kind} {folder}: the model of --model classifies {takes.kind}, give --{takes.kind} FOLDER")
    if kind == "texts":
        files = spread(find_texts(folder), options.limit)
        return from_texts(folder, files, classes, takes, options.batch, skip)
    files = spread(find_images(folder), options.limit)
    return from_folder(folder, files, classes, takes.shape, options.batch, skip)


def folder_of(options: argparse.Namespace) -> Path:
    """Return the folder that the options name, if they name one."""
    return Path(options.texts or options.images)


def find_images(folder: Path) -> list[Path]:
    """Return all images below a folder, sorted; raises `UserError` without any."""
    return _find(folder, "images", SHOWN_SUFFIXES, walk)


def find_texts(folder: Path) -> list[Path]:
    """Return all text files below a folder, sorted; raises `UserError` without any."""
    return _find(folder, "texts", f"{TEXT_SUFFIX} files", lambda root: walk(root, (TEXT_SUFFIX,), "a text's"))


def _find(folder: Path, kind: str, wanted: str, walk: Callable[[Path], Tree]) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"--{kind} {folder} is not a folder: give a folder that holds {kind}")
    tree = walk(folder)
    if not tree.images:
        found = "".join(f"; {note}" for note in tree.notes())
        raise UserError(f"--{kind} {folder} holds no {kind}: put {wanted} there{found}")
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
    decoding = Decoding(files)

    def rows() -> Iterator[Row]:
        for path, name, truth in _named(folder, files, classes):
            pixels = next(decode([path], (channels, height, width), resize=True, where="image", part_of=decoding), None)
            if pixels is None:
                skip(Path(name), str(decoding.damaged.pop()))
            else:
                yield name, truth, pixels

    yield from _batched(rows(), size)
    _print(decoding.notes())


def from_texts(
    folder: Path,
    files: Sequence[Path],
    classes: Classes,
    takes: Takes,
    size: int,
    skip: Unreadable = lambda path, reason: None,
) -> Iterator[Samples]:
    """Yield the readable texts of `files` below `folder`, a file each; truths as `from_folder` finds them."""

    def rows() -> Iterator[Row]:
        for path, name, truth in _named(folder, files, classes):
            try:
                ids = token_ids(read_text(path), takes.vocabulary, takes.shape[0])
            except UserError as error:
                skip(Path(name), str(error))
            else:
                yield name, truth, ids

    return _batched(rows(), size)


def _named(folder: Path, files: Sequence[Path], classes: Classes) -> Iterator[tuple[Path, str, str | None]]:
    """Yield each file with its name and its truth: the deepest folder above it that is named like a class."""
    known = {folder_name(name): name for name in classes}
    for path in files:
        inside = path.relative_to(folder)
        truth = next((known[part] for part in map(folder_name, reversed(inside.parts[:-1])) if part in known), None)
        yield path, str(inside), truth


def _batched(rows: Iterable[Row], size: int) -> Iterator[Samples]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        names, truths, inputs = zip(*batch, strict=True)
        yield Samples(list(names), list(truths), np.stack(inputs))


def _print(notes: Iterable[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def from_dataset(
    text: str, classes: Classes, takes: Takes, size: int, limit: int, column: str | None = None
) -> Iterator[Samples]:
    """Return an iterator over a data set's test split, of texts those of a column (None: the set's usual one).

    `text` is typed as NAME or NAME:FOLDER, the name a known set's or a function's, whose package this process may then
    import. Raises `UserError` when the set does not fit the network.
    """
    name, folder = _named_set(text)
    plugins.allow([name])
    root, values = str(Path(folder).absolute()) if folder else "", dict[str, Any]()
    if takes.vocabulary:
        values = {"length": takes.shape[0], "vocabulary": takes.vocabulary, **({"text": column} if column else {})}
    elif takes.shape[1] == takes.shape[2]:
        values = {"image_size": takes.shape[1]}
    found = read_section(DataConfig, name=name, root=root, **values)
    config, problem = found.section, "; ".join(found.problems)
    problem = problem.replace("data.root", "--dataset NAME:FOLDER").replace("data.name", "--dataset")
    if problem or config.is_text != bool(takes.vocabulary) or name == DEVICES:
        raise UserError(problem or f"--dataset {name} holds no {takes.kind}: give a data set of {takes.kind}")
    whole = load_arrays(config, paths.cache_root())
    test = whole.test
    if test.shape != takes.shape:
        raise UserError(
            f"--dataset {name} has {takes.kind} of {test.shape}, but the network takes {takes.shape}: give another set"
        )
    if unknown := sorted(set(whole.classes) - set(classes)):
        raise UserError(
            f"--dataset {name} has the class {unknown[0]!r}, the model does not: give the set it was trained on"
        )
    chosen = spread(range(len(test.labels)), limit)
    return _from_set(test.inputs, [whole.classes[label] for label in test.labels.tolist()], chosen, size)


def _named_set(text: str) -> tuple[str, str]:
    """Return the name and the folder, if any, of NAME[:FOLDER]; a function's name has a colon of its own."""
    name, _, rest = text.partition(":")
    function, _, folder = rest.partition(":")
    reference = f"{name}:{function}"
    return (reference, folder) if name not in NAMES and plugins.is_reference(reference) else (name, rest)


def _from_set(inputs: NDArray[Any], truths: Sequence[str], chosen: Sequence[int], size: int) -> Iterator[Samples]:
    for start in range(0, len(chosen), size):
        rows = list(chosen[start : start + size])
        yield Samples([str(row) for row in rows], [truths[row] for row in rows], np.asarray(inputs[rows]))

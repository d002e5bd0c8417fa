"""A local folder of images: train/<class>/* and test/<class>/*, or <class>/* without a test split."""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.data.raw import RawSet, RawSplit
from common.data.support import counted, listed, printable
from common.data.tree import SHOWN_SUFFIXES, Tree, walk
from common.errors import UserError

TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation", "dev")


@dataclass(frozen=True)
class ClassFolders:
    """The images below one folder by class."""

    folder: Path
    files: dict[str, list[Path]]  # sorted by class name, which is in Unicode's form NFC, and by path
    empty: list[Path]  # folders without images
    loose: list[Path]  # images outside class folders

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    def inside(self, name: str) -> set[str]:
        """Return the names that lie in a class folder, of images or of the folders that hold them."""
        return {file.relative_to(self.folder).parts[1] for file in self.files[name]}

    def notes(self, tree: Tree) -> list[str]:
        """Return a sentence for each kind of file or folder that is left out."""
        notes = []
        if self.loose:
            number = counted(len(self.loose), "image")
            notes.append(f"left out: {number} outside class folders ({listed(tree.names(self.loose))})")
        if self.empty:
            number = counted(len(self.empty), "folder")
            notes.append(f"left out: {number} without images ({listed(tree.names(self.empty))})")
        return notes

    def deeper(self, tree: Tree) -> list[str]:
        """Return a sentence if class folders have folders of images inside."""
        depth = len(self.folder.parts) + 2
        images = (file for files in self.files.values() for file in files)
        found = sorted({Path(*image.parts[:depth]) for image in images if len(image.parts) > depth})
        return [f"folders inside class folders belong to the class ({listed(tree.names(found))})"] if found else []


def class_folders(tree: Tree, folder: Path) -> ClassFolders:
    """Return the images of a tree below one of its folders by class.

    Raises `UserError` for two class folders of one name, and for a name that is not UTF-8.
    """
    children: dict[Path, list[Path]] = {path: [] for path in tree.folders if path.parent == folder}
    loose = []
    depth = len(folder.parts)
    for image in tree.images:
        if image.parts[:depth] != folder.parts:
            continue
        if len(image.parts) == depth + 1:
            loose.append(image)
        else:
            children[folder / image.parts[depth]].append(image)
    files: dict[str, list[Path]] = {}
    for child, images in children.items():
        name = unicodedata.normalize("NFC", child.name)
        if images and any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"{folder} has a class folder whose name is not UTF-8 ({printable(name)}): rename it")
        if images and files.setdefault(name, images) is not images:
            raise UserError(
                f"{folder} has two class folders named {printable(name)}, in two Unicode spellings: merge them"
            )
    empty = [child for child, images in children.items() if not images]
    return ClassFolders(folder, dict(sorted(files.items())), empty, loose)


class OwnFiles(NamedTuple):
    """A device's own images by class folder, before any is decoded."""

    files: dict[str, list[Path]]  # sorted by class name, which is in Unicode's form NFC, and by path; may be empty
    notes: tuple[str, ...]  # a sentence for whatever is left out, with numbers


def own_files(folder: Path) -> OwnFiles:
    """Return a device's own images, <folder>/<class>/*, without decoding any.

    Raises `UserError` if the folder is missing or cannot be read, for two class folders of one name, and for a name
    that is not UTF-8.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: create it with one folder of images per class")
    tree = walk(folder)
    found = class_folders(tree, folder)
    return OwnFiles(found.files, (*tree.notes(), *found.notes(tree), *found.deeper(tree)))


def read_image_folder(root: Path) -> RawSet:
    """Read file names; the images stay on disk until they are decoded.

    Raises `UserError` if no image is found, if the folders are no classes or splits, or if the test or validation split
    has a class that the training split lacks.
    """
    tree = walk(root)
    splits = _splits(tree)
    train = splits.pop("train", None)
    if train is None:
        whole = class_folders(tree, root)
        _check_whole(tree, whole, splits)
        notes = [*tree.notes(), *whole.notes(tree), *whole.deeper(tree)]
        return RawSet(_split(whole, whole), None, tuple(whole.files), tuple(notes))
    _check_classes(train)
    for split in splits.values():
        if unknown := sorted(set(split.files) - set(train.files)):
            raise UserError(
                f"{split.folder} has classes that {train.folder} lacks ({listed(unknown)}): name the folders alike"
            )
    notes = tree.notes()
    for split in (train, *splits.values()):
        notes += [*split.notes(tree), *split.deeper(tree)]
    notes += _beside(tree, [train, *splits.values()])
    test, validation = splits.get("test"), splits.get("validation")
    if validation and not test:
        number = counted(len(validation), "image")
        notes.append(f"{validation.folder.name}/ ({number}) is the test set, since test/ is missing")
        test, validation = validation, None
    return RawSet(
        _split(train, train), _split(test, train) if test else None, tuple(train.files), tuple(notes),
        _split(validation, train) if validation else None,
    )  # fmt: skip


def _splits(tree: Tree) -> dict[str, ClassFolders]:
    """Return the folders named like a split that hold class folders; raises `UserError` for two of one split."""
    found: dict[str, ClassFolders] = {}
    for child, role in _named_like_splits(tree):
        split = class_folders(tree, child)
        if split.files and found.setdefault(role, split) is not split:
            raise UserError(
                f"{tree.root} has two folders for one split, {found[role].folder.name} and {child.name}: "
                f"merge them or remove one"
            )
    return found


def _named_like_splits(tree: Tree) -> Iterator[tuple[Path, str]]:
    roles = {name: names[0] for names in (TRAIN, TEST) for name in names} | dict.fromkeys(VALIDATION, "validation")
    children = (path for path in tree.folders if path.parent == tree.root)
    return ((child, roles[child.name.lower()]) for child in children if child.name.lower() in roles)


def _check_whole(tree: Tree, whole: ClassFolders, splits: dict[str, ClassFolders]) -> None:
    """Raise `UserError` if the folders of a set without a training split are not its classes."""
    if not whole.files:
        found = "; ".join((*tree.notes(), *whole.notes(tree)))
        raise UserError(
            f"data.root {tree.root} holds neither train*.parquet files nor images ({SHOWN_SUFFIXES}) in "
            f"train/<class>/ or <class>/ folders: set it to a folder that does" + (f" ({found})" if found else "")
        )
    if splits:
        name = next(iter(splits.values())).folder.name
        raise UserError(
            f"data.root {tree.root} has {name}/ with class folders, but no train/ with class folders: add it"
        )
    flat = {role: child.name for child, role in _named_like_splits(tree) if child.name in whole.files}
    if "train" in flat and len(flat) > 1:
        raise UserError(
            f"data.root {tree.root}: {' and '.join(flat.values())} hold images without class folders: "
            f"sort them into one folder per class in each"
        )
    _check_classes(whole)


def _check_classes(found: ClassFolders) -> None:
    """Raise `UserError` if class folders hold the classes or the splits."""
    for name, files in found.files.items():
        inside = found.inside(name)
        only_folders = all(len(file.relative_to(found.folder).parts) > 2 for file in files)
        if len(found.files) == 1 and only_folders:
            raise UserError(
                f"{printable(name)}/ is the only class folder in {found.folder} and has only folders inside "
                f"({listed(sorted(inside))}): if those are the classes, set data.root to "
                f"{found.folder / printable(name)}"
            )
        lower = {part.lower() for part in inside}
        if lower & set(TRAIN) and lower & {*TEST, *VALIDATION}:
            raise UserError(
                f"{found.folder / printable(name)} has folders for splits ({listed(sorted(inside))}): "
                f"put classes into splits, such as train/<class>/, not splits into classes"
            )


def _beside(tree: Tree, used: list[ClassFolders]) -> list[str]:
    """Return a note on what lies beside the splits."""
    beside = class_folders(tree, tree.root)
    taken = {split.folder.name for split in used}
    left = [f"{name} with {counted(len(files), 'image')}" for name, files in beside.files.items() if name not in taken]
    notes = beside.notes(tree)
    if left:
        notes.append(f"left out: {counted(len(left), 'folder')} beside {', '.join(sorted(taken))} ({listed(left)})")
    return notes


def _split(split: ClassFolders, train: ClassFolders) -> RawSplit:
    labels = [label for label, name in enumerate(train.files) for _ in split.files.get(name, ())]
    files = [file for name in train.files for file in split.files.get(name, ())]
    return RawSplit(files, np.asarray(labels, dtype=np.int64))

"""A local folder of images: train/<class>/* and test/<class>/*, or <class>/* without a test split."""

from pathlib import Path

import numpy as np

from common.data.raw import RawSet, RawSplit
from common.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEST_FOLDERS = ("test", "val", "valid")


def image_files(root: Path) -> dict[str, list[Path]]:
    """Return the images of every class folder, classes and files sorted by name; empty classes are left out."""
    folders = (entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    classes = {folder.name: images_below(folder) for folder in sorted(folders)}
    return {name: files for name, files in classes.items() if files}


def images_below(folder: Path) -> list[Path]:
    """Return the image files at any depth, sorted."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def read_image_folder(root: Path) -> RawSet:
    """Read file names; the images stay on disk until they are decoded.

    Raises `UserError` if no image is found, or if the test split has a class that the training split lacks.
    """
    train_root = root / "train" if (root / "train").is_dir() else root
    train = image_files(train_root)
    if not train:
        raise UserError(
            f"data.root {root} holds neither train*.parquet files nor images ({', '.join(SUFFIXES)}) in "
            f"train/<class>/ or <class>/ folders: set it to a folder that does"
        )
    classes = tuple(train)
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if train_root == root or test_root is None:
        return RawSet(_split(train, classes), None, classes)
    test = image_files(test_root)
    if unknown := sorted(set(test) - set(classes)):
        raise UserError(
            f"{test_root} has classes that {train_root} lacks ({', '.join(unknown)}): name the folders alike"
        )
    return RawSet(_split(train, classes), _split(test, classes) if test else None, classes)


def _split(files: dict[str, list[Path]], classes: tuple[str, ...]) -> RawSplit:
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
    return RawSplit([path for name in classes for path in files.get(name, ())], np.asarray(labels, dtype=np.int64))

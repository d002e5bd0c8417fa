"""A real device's own images: <folder>/<class>/*, with the class names of the run."""

import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.data.decode import Decoding, decode, image_shape, varied
from common.data.image_folder import class_folders
from common.data.images import SampleSet
from common.data.split import client_split
from common.data.summary import DataSummary
from common.data.support import listed
from common.data.tree import SHOWN_SUFFIXES, walk
from common.errors import UserError

_SHOWN = 20


class DeviceData(NamedTuple):
    """A device's own images."""

    train: SampleSet
    validation: SampleSet
    test: SampleSet
    notes: tuple[str, ...]  # a sentence for whatever was left out or changed, with numbers


def own_folder(folder: Path) -> DataSummary:
    """Return the summary of a device's folder by its own class folders, decoded without resizing to a run's shape.

    Raises `UserError` where a run would refuse the folder, whatever its classes are.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: create it with one folder of images per class")
    found = class_folders(walk(folder), folder).files
    paths = [path for files in found.values() for path in files]
    shape = image_shape(paths, 0, where="image") if paths else (1, 1, 1)
    data = device_data(folder, tuple(found), shape, 0.0, seed=0)
    counts = {"images": tuple(np.bincount(data.train.labels.numpy(), minlength=len(found)).tolist())}
    return DataSummary("folder", str(folder), shape, tuple(found), counts, None, data.notes, digest="")


def device_data(
    folder: Path,
    classes: tuple[str, ...],
    image_shape: tuple[int, int, int],
    validation: float,
    seed: int,
    *,
    test: float = 0.0,
    skip_damaged: bool = False,
) -> DeviceData:
    """Return a device's own images.

    Args:
        folder: one folder per class, named like the run's class ("/" written as "-"); classes may be absent.
        classes: the run's class names, index = label.
        image_shape: (C, H, W) that the network takes; images are made grey or RGB and resized to it.
        validation: share kept for validation, in [0, 1), of the samples that `test` leaves.
        seed: of the split.
        test: share kept for testing, in [0, 1).
        skip_damaged: leave out images that cannot be read.

    Raises:
        UserError: the folder is missing or empty, a class is unknown, or an image cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: create it with one folder of images per class")
    labels = {unicodedata.normalize("NFC", name.replace("/", "-")): label for label, name in enumerate(classes)}
    tree = walk(folder)
    found = class_folders(tree, folder)
    notes = [*tree.notes(), *found.notes(tree), *found.deeper(tree)]
    if unknown := [name for name in found.files if name not in labels]:
        raise UserError(
            f"{folder} has folders that are not classes of this run ({listed(unknown, _SHOWN)}): "
            f"rename each to one of {listed(list(labels), _SHOWN)}"
        )
    if not found.files:
        raise UserError(
            f"{folder} holds no images: put {SHOWN_SUFFIXES} into {folder}/<class>/" + "".join(f"; {n}" for n in notes)
        )
    paths = [path for files in found.files.values() for path in files]
    targets = np.asarray([labels[name] for name, files in found.files.items() for _ in files], dtype=np.int64)
    decoding, damaged = Decoding(paths, skip_damaged=skip_damaged), list[int]()
    pixels = list(varied(decode(paths, image_shape, resize=True, where="image", part_of=decoding, damaged=damaged)))
    decoding.check()
    images = SampleSet(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.delete(targets, damaged)), classes)
    parts = client_split(np.arange(len(images)), validation, seed, client_id=0, test=test)
    train, held_out, own_test = (images.subset(part) for part in parts)
    return DeviceData(train, held_out, own_test, (*notes, *decoding.notes()))

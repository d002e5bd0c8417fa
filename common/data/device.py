"""A real device's own images: <folder>/<class>/*, with the class names of the run."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from common.data.decode import Decoding, decode, image_shape, varied
from common.data.image_folder import OwnFiles, own_files
from common.data.images import SampleSet
from common.data.split import client_split
from common.data.summary import DataSummary
from common.data.support import listed
from common.data.tree import SHOWN_SUFFIXES
from common.errors import UserError
from common.sections.data import folder_name

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
    found = _some_files(folder)
    paths = [path for files in found.files.values() for path in files]
    shape = image_shape(paths, 0, where="image")
    decoding = Decoding(paths)
    for _ in varied(decode(paths, shape, resize=True, where="image", part_of=decoding)):
        pass  # an image at a time: all of them may not fit into memory in their own size
    decoding.check()
    counts = {"images": tuple(map(len, found.files.values()))}
    notes = (*found.notes, *decoding.notes())
    return DataSummary("folder", str(folder), shape, tuple(found.files), counts, None, notes, digest="")


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
    labels = {folder_name(name): label for label, name in enumerate(classes)}
    found = _some_files(folder)
    if unknown := [name for name in found.files if name not in labels]:
        raise UserError(
            f"{folder} has folders that are not classes of this run ({listed(unknown, _SHOWN)}): "
            f"rename each to one of {listed(list(labels), _SHOWN)}"
        )
    paths = [path for files in found.files.values() for path in files]
    targets = np.asarray([labels[name] for name, files in found.files.items() for _ in files], dtype=np.int64)
    decoding, damaged = Decoding(paths, skip_damaged=skip_damaged), list[int]()
    inputs = np.empty((len(paths), *image_shape), dtype=np.uint8)
    decoded = decode(paths, image_shape, resize=True, where="image", part_of=decoding, damaged=damaged)
    for position, pixels in enumerate(varied(decoded)):
        inputs[position] = pixels
    decoding.check()
    targets = np.delete(targets, damaged)
    images = SampleSet(torch.from_numpy(inputs[: len(targets)]), torch.from_numpy(targets), classes)
    parts = client_split(np.arange(len(images)), validation, seed, client_id=0, test=test)
    train, held_out, own_test = (images.subset(part) for part in parts)
    return DeviceData(train, held_out, own_test, (*found.notes, *decoding.notes()))


def _some_files(folder: Path) -> OwnFiles:
    """Return a device's own images; raises `UserError` as `own_files` does, and if there are none."""
    found = own_files(folder)
    if not found.files:
        also = "".join(f"; {note}" for note in found.notes)
        raise UserError(f"{folder} holds no images: put {SHOWN_SUFFIXES} into {folder}/<class>/{also}")
    return found

"""A real device's own images: <folder>/<class>/*, with the class names of the run."""

from pathlib import Path

import numpy as np
import torch

from common.data.decode import decode
from common.data.image_folder import SUFFIXES, image_files
from common.data.images import SampleSet
from common.data.split import client_split
from common.errors import UserError

_SHOWN = 20


def device_data(
    folder: Path,
    classes: tuple[str, ...],
    image_shape: tuple[int, int, int],
    validation: float,
    seed: int,
    *,
    test: float = 0.0,
) -> tuple[SampleSet, SampleSet, SampleSet]:
    """Return a device's own (training, validation, test) images.

    Args:
        folder: one folder per class, named like the run's class ("/" written as "-"); classes may be absent.
        classes: the run's class names, index = label.
        image_shape: (C, H, W) that the network takes; images are made grey or RGB and resized to it.
        validation: share kept for validation, in [0, 1), of the samples that `test` leaves.
        seed: of the split.
        test: share kept for testing, in [0, 1).

    Raises:
        UserError: the folder is missing or empty, a class is unknown, or an image cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: create it with one folder of images per class")
    labels = {name.replace("/", "-"): label for label, name in enumerate(classes)}
    files = image_files(folder)
    if unknown := [name for name in files if name not in labels]:
        raise UserError(
            f"{folder} has folders that are not classes of this run ({_names(unknown)}): "
            f"rename each to one of {_names(list(labels))}"
        )
    if not files:
        raise UserError(f"{folder} holds no images: put {', '.join(SUFFIXES)} files into {folder}/<class>/")
    paths = [path for name in files for path in files[name]]
    pixels = np.stack(list(decode(paths, image_shape, resize=True, where="image")))
    targets = [labels[name] for name in files for _ in files[name]]
    images = SampleSet(torch.from_numpy(pixels), torch.tensor(targets, dtype=torch.int64), classes)
    parts = client_split(np.arange(len(paths)), validation, seed, client_id=0, test=test)
    return images.subset(parts.train), images.subset(parts.validation), images.subset(parts.test)


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

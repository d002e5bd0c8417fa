"""From a configuration to tensors: find the source, decode it once, keep the pixels in a cache on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common.data.cache import Json, cached, content_key, fingerprint, write_rows
from common.data.catalogue import DEVICES, EMBEDDED
from common.data.config import DataConfig
from common.data.decode import decode, image_shape
from common.data.digits import read_digits
from common.data.hub import read_hub
from common.data.image_folder import images_below, read_image_folder
from common.data.images import SampleSet
from common.data.parquet import parquet_files, read_parquet
from common.data.raw import RawSet, RawSplit, first, merged, split_off_test
from common.errors import UserError

# Raise it whenever the same files would decode to something else, so that older caches are not taken.
_FORMAT = 1
_MERGED = 0.5  # any share stands for all, because none of them changes the pixels


@dataclass(frozen=True, eq=False)
class TrainTest:
    """A whole set.

    train, test  what is dealt to clients, and what the server tests on: nothing with data.client-test
    natural      the client that each training sample belongs to (N,), integers or text; None unless
                 data.partitioner is natural
    """

    train: SampleSet
    test: SampleSet
    natural: NDArray[np.generic] | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, index = label."""
        return self.train.classes

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.train.shape


def load(config: DataConfig, cache: Path | None) -> TrainTest:
    """Return the set that a configuration names; later calls in the same process return the same object.

    cache: folder for decoded pixels, shared by processes; with None every process decodes for itself.
    Raises UserError if the set is missing or damaged, or its columns are not as told.
    """
    if config.name == DEVICES:
        nothing = torch.empty((0, config.channels, config.image_size, config.image_size), dtype=torch.uint8)
        empty = SampleSet(nothing, torch.empty(0, dtype=torch.int64), config.classes)
        return TrainTest(empty, empty)
    # Only what changes the pixels counts, so that two partitions of one set share it.
    by_column = config.partitioner == "natural"
    return _load(
        DataConfig(
            name=config.name,
            root=config.root,
            partitioner="natural" if by_column else "iid",
            column=config.column if by_column else "",
            label=config.label,
            image_size=config.image_size,
            limit=config.limit,
            client_test=_MERGED if config.client_test else 0.0,
        ),
        cache,
    )


@lru_cache(maxsize=4)
def _load(config: DataConfig, cache: Path | None) -> TrainTest:
    files = _source_files(config)
    if cache is None:
        return _in_memory(config)
    root = Path(config.root).resolve()
    key = content_key("images", _FORMAT, *_identity(config), fingerprint(root, files) if files else [])
    return cached(cache, key, lambda folder: _write(config, folder), _read)


def _identity(config: DataConfig) -> list[Json]:
    identity: list[Json] = [config.name, config.column, config.label, config.image_size, config.limit]
    return [*identity, "merged"] if config.client_test else identity


def _source_files(config: DataConfig) -> list[Path]:
    """Return the local files of a set, [] for one that is embedded or on the hub."""
    if not config.root:
        return []
    root = Path(config.root).resolve()
    if not root.is_dir():
        raise UserError(f"data.root: there is no folder {root}: set it to the folder that holds the images")
    return parquet_files(root) or images_below(root)


def _read_source(config: DataConfig) -> tuple[RawSplit, RawSplit, tuple[str, ...]]:
    raw = _open_source(config)
    if raw.train.natural is None and config.column:
        raise UserError(f"the set {config.name!r} has no column {config.column!r}: choose another data.partitioner")
    train, test = (raw.train, raw.test) if raw.test is not None else split_off_test(raw.train)
    if not len(train.labels) or not len(test.labels):
        raise UserError(f"the set {config.root or config.name} has no training or no test images: add some")
    train = first(train, config.limit)
    if config.client_test:
        train, test = merged(train, test), test.take(np.arange(0))
    return train, test, raw.classes


def _open_source(config: DataConfig) -> RawSet:
    if config.name == EMBEDDED:
        return read_digits()
    if not config.root:
        return read_hub(config)
    root = Path(config.root).resolve()
    return read_parquet(root, config) if parquet_files(root) else read_image_folder(root)


def _decoded(
    config: DataConfig, train: RawSplit, test: RawSplit
) -> Iterator[tuple[str, RawSplit, tuple[int, ...], Iterator[NDArray[np.uint8]]]]:
    """Yield (name, split, shape (N, C, H, W), images) of both splits."""
    shape = image_shape(train.images, config.image_size, where="train image")
    for name, split in (("train", train), ("test", test)):
        images = decode(split.images, shape, resize=config.image_size > 0, where=f"{name} image")
        yield name, split, (len(split.labels), *shape), images


def _in_memory(config: DataConfig) -> TrainTest:
    train, test, classes = _read_source(config)
    sets = {}
    for name, split, shape, images in _decoded(config, train, test):
        pixels = np.empty(shape, dtype=np.uint8)
        for position, image in enumerate(images):
            pixels[position] = image
        sets[name] = SampleSet(torch.from_numpy(pixels), torch.from_numpy(split.labels), classes)
    return TrainTest(sets["train"], sets["test"], train.natural)


def _write(config: DataConfig, folder: Path) -> None:
    train, test, classes = _read_source(config)
    for name, split, shape, images in _decoded(config, train, test):
        write_rows(folder / f"{name}_images.npy", shape, images)
        np.save(folder / f"{name}_labels.npy", split.labels, allow_pickle=False)
    if train.natural is not None:
        np.save(folder / "natural.npy", train.natural, allow_pickle=False)
    (folder / "classes.json").write_text(json.dumps(classes))


def _read(folder: Path) -> TrainTest:
    classes = tuple(json.loads((folder / "classes.json").read_text()))
    sets = [
        SampleSet(
            # Copy on write: pages come from the file as they are needed, and a stray write never reaches it.
            torch.from_numpy(np.load(folder / f"{name}_images.npy", mmap_mode="c", allow_pickle=False)),
            torch.from_numpy(np.load(folder / f"{name}_labels.npy", allow_pickle=False)),
            classes,
        )
        for name in ("train", "test")
    ]
    natural = folder / "natural.npy"
    return TrainTest(sets[0], sets[1], np.load(natural, allow_pickle=False) if natural.exists() else None)

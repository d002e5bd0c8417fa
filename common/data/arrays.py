"""Load the set that a configuration names as numpy arrays: decode it once, keep the arrays in a cache on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from common.data.cache import Json, cached, content_key, write_rows
from common.data.csv_table import read_csv
from common.data.decode import Decoding, decode, image_shape, varied
from common.data.digits import read_digits
from common.data.fingerprint import fingerprint
from common.data.hub import read_hub
from common.data.image_folder import read_image_folder
from common.data.news import read_news
from common.data.outside import code_digest, read_outside
from common.data.parquet import parquet_files, read_parquet
from common.data.raw import Encoded, RawSet, RawSplit, content_digest, first, merged, split_off_test
from common.data.support import counted, listed, one_line
from common.data.text import token_ids
from common.errors import UserError
from common.plugins import is_reference
from common.sections.data import DataConfig
from common.sections.data_sets import DEVICES, EMBEDDED, NEWS

# Raise it whenever the same files would decode to something else, so that older caches are not used.
_FORMAT = 5
_MERGED = 0.5  # stands for every share above 0, since the merged samples are the same for all of them


@dataclass(frozen=True, eq=False)
class LabelledArrays:
    """One split. The inputs may be a file mapped into memory: read the rows you need."""

    inputs: NDArray[np.generic]  # uint8 (N, C, H, W) pixels or int32 (N, L) token ids
    labels: NDArray[np.int64]  # (N,)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, (L,) of one text."""
        return self.inputs.shape[1:]


@dataclass(frozen=True, eq=False)
class ArraySet:
    """A whole set; the fields are those of `TrainTest`."""

    train: LabelledArrays
    test: LabelledArrays
    classes: tuple[str, ...]
    natural: NDArray[np.generic] | None = None
    notes: tuple[str, ...] = ()
    validation: LabelledArrays | None = None
    digest: str = ""


def load_arrays(config: DataConfig, cache: Path | None) -> ArraySet:
    """Return the set that a configuration names; the same object until `look_again` finds other files in `data.root`.

    `cache` is a folder for pixels and token ids, shared by processes; with None every process decodes for itself.
    Raises `UserError` if the set is missing or damaged, or lacks a configured column.
    """
    if config.name == DEVICES:
        nothing = np.empty((0, config.channels, config.image_size, config.image_size), dtype=np.uint8)
        empty = LabelledArrays(nothing, np.empty(0, dtype=np.int64))
        return ArraySet(empty, empty, config.classes)
    # Only the fields that change the samples are passed on, so that two partitions of one set share it.
    by_column = config.partitioner == "natural"
    default = DataConfig()
    return _load(
        DataConfig(
            name=config.name,
            root=config.root,
            partitioner="natural" if by_column else "iid",
            column=config.column if by_column else "",
            label=config.label,
            image_size=config.image_size,
            skip_damaged=config.skip_damaged,
            limit=config.limit,
            client_test=_MERGED if config.client_test else 0.0,
            text=config.text if config.is_text else default.text,
            length=config.length if config.is_text else default.length,
            vocabulary=config.vocabulary if config.is_text else default.vocabulary,
        ),
        cache,
        _fingerprint(config),
    )


@lru_cache(maxsize=4)
def _load(config: DataConfig, cache: Path | None, files: str) -> ArraySet:
    if cache is None:
        return _in_memory(config)
    key = content_key("texts" if config.is_text else "images", _FORMAT, *_identity(config), files)
    return cached(cache, key, lambda folder: _write(config, folder), _read)


def _identity(config: DataConfig) -> list[Json]:
    texts: list[Json] = [config.text, config.length, config.vocabulary]
    options = texts if config.is_text else [config.image_size, config.skip_damaged]
    return [config.name, config.column, config.label, config.limit, config.client_test > 0, *options]


def _fingerprint(config: DataConfig) -> str:
    """Return the fingerprint of a set's code and local files; "" if it is embedded or on the hub."""
    code = code_digest(config.name) if is_reference(config.name) else ""
    if not config.root:
        return code
    root = Path(config.root)
    if not root.is_dir():
        raise UserError(f"data.root is {root}, which is not a folder: set it to the folder that holds the samples")
    # a function may read any file, tables alone are read where they lie on top
    deep = bool(code) or not (config.is_text or parquet_files(root))
    return code + fingerprint(config.root, deep=deep)


def _read_source(config: DataConfig) -> RawSet:
    """Return the set as it is used: with a test split, within `data.limit`, and merged if clients test on their own."""
    where = config.root or config.name
    try:
        raw = _open_source(config)
    except OSError as error:  # of reading: the cache reports what cannot be written
        raise UserError(
            f"the set {where} cannot be read ({one_line(error)}): check that its files exist and may be read"
        ) from error
    if raw.train.natural is None and config.column:
        raise UserError(f"the set {config.name!r} has no column {config.column!r}: choose another data.partitioner")
    notes = list(raw.notes)
    if not len(raw.train.labels):
        raise UserError(f"the set {where} has no training samples: add some")
    train, test = (raw.train, raw.test) if raw.test is not None else split_off_test(raw.train)
    if not len(test.labels):
        raise UserError(f"the set {where} has no test samples: add some, or remove what should hold them")
    if raw.test is None and config.root:
        notes.append(f"no test split: a fifth of each class, {counted(len(test.labels), 'sample')}, is for testing")
    train, validation = first(train, config.limit), raw.validation
    for word, part in (("training", train), ("test", test)):
        if absent := sorted(set(range(len(raw.classes))) - set(part.labels.tolist())):
            notes.append(f"classes without {word} samples: {listed([raw.classes[label] for label in absent])}")
    if validation:
        use = (
            "is dealt to clients too"
            if config.client_test
            else "is the server's; clients hold out data.validation still"
        )
        notes.append(f"the validation split ({counted(len(validation.labels), 'sample')}) {use}")
    digest = content_digest(*filter(None, (train, test, validation)))
    if config.client_test:
        for split in (test, validation):
            train = merged(train, split) if split else train
        test, validation = test.take(np.arange(0)), None
    return replace(raw, train=train, test=test, validation=validation, notes=tuple(notes), digest=digest)


def _open_source(config: DataConfig) -> RawSet:
    if config.name == EMBEDDED:
        return read_digits()
    if config.name == NEWS:
        return read_news(config)
    if is_reference(config.name):
        return read_outside(config)
    if not config.root:
        return read_hub(config)
    root = Path(config.root).resolve()
    if parquet_files(root):
        return read_parquet(root, config)
    return read_csv(root, config) if config.is_text else read_image_folder(root)


@dataclass(frozen=True)
class _Rows:
    """One split's samples as arrays of one shape and type, made one at a time."""

    name: str
    split: RawSplit
    shape: tuple[int, ...]  # with the number of samples in front
    dtype: np.dtype[np.generic]
    samples: Iterator[NDArray[np.generic]]  # without the damaged ones
    damaged: list[int] = field(default_factory=list)  # their positions, known once all samples are made

    def left(self) -> RawSplit:
        """Return the split without its damaged samples."""
        return self.split.take(np.delete(np.arange(len(self.split.labels)), self.damaged))


def _decoded(config: DataConfig, raw: RawSet, notes: list[str]) -> Iterator[_Rows]:
    """Yield each split; after the last, add what was changed or left out to the notes."""
    splits = {"train": raw.train, "test": cast(RawSplit, raw.test)}
    if raw.validation is not None:
        splits["validation"] = raw.validation
    if config.is_text:
        for name, split in splits.items():
            texts = (token_ids(cast(str, text), config.vocabulary, config.length) for text in split.samples)
            yield _Rows(name, split, (len(split.labels), config.length), np.dtype("<i4"), texts)
        return
    images = {name: cast(Sequence[Encoded], split.samples) for name, split in splits.items()}
    shape = image_shape(images["train"], config.image_size, where="train image")
    decoding = Decoding(*images.values(), skip_damaged=config.skip_damaged)
    for name, split in splits.items():
        damaged: list[int] = []
        pixels = decode(
            images[name], shape, resize=config.image_size > 0, where=f"{name} image", part_of=decoding, damaged=damaged
        )
        samples = varied(pixels) if name == "train" else pixels
        yield _Rows(name, split, (len(split.labels), *shape), np.dtype("|u1"), samples, damaged)
    decoding.check()
    notes += decoding.notes()


def _in_memory(config: DataConfig) -> ArraySet:
    raw = _read_source(config)
    notes, natural = list(raw.notes), raw.train.natural
    sets: dict[str, LabelledArrays] = {}
    for rows in _decoded(config, raw, notes):
        inputs = np.empty(rows.shape, dtype=rows.dtype)
        for position, sample in enumerate(rows.samples):
            inputs[position] = sample
        left = rows.left()
        natural = left.natural if rows.name == "train" else natural
        sets[rows.name] = LabelledArrays(inputs[: len(left.labels)], left.labels)
    return ArraySet(sets["train"], sets["test"], raw.classes, natural, tuple(notes), sets.get("validation"), raw.digest)


def _write(config: DataConfig, folder: Path) -> None:
    raw = _read_source(config)
    notes = list(raw.notes)
    for rows in _decoded(config, raw, notes):
        write_rows(folder / f"{rows.name}_inputs.npy", rows.shape, rows.dtype, rows.samples)
        left = rows.left()
        np.save(folder / f"{rows.name}_labels.npy", left.labels, allow_pickle=False)
        if rows.name == "train" and left.natural is not None:
            np.save(folder / "natural.npy", left.natural, allow_pickle=False)
    (folder / "set.json").write_text(json.dumps({"classes": raw.classes, "notes": notes, "digest": raw.digest}))


def _read(folder: Path) -> ArraySet:
    facts = json.loads((folder / "set.json").read_text())
    sets = {
        name: LabelledArrays(
            # Copy on write: pages come from the file as they are needed, and a stray write never reaches it.
            np.load(folder / f"{name}_inputs.npy", mmap_mode="c", allow_pickle=False),
            np.load(folder / f"{name}_labels.npy", allow_pickle=False),
        )
        for name in ("train", "test", "validation")
        if name != "validation" or (folder / "validation_inputs.npy").exists()
    }
    natural = folder / "natural.npy"
    clients = np.load(natural, allow_pickle=False) if natural.exists() else None
    return ArraySet(
        sets["train"], sets["test"], tuple(facts["classes"]), clients, tuple(facts["notes"]), sets.get("validation"),
        facts["digest"],
    )  # fmt: skip

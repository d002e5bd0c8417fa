"""Arrow tables with a column of images or texts and one of labels, from files or the Hugging Face hub."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from common.data.columns import Column, decoded, is_text, read_column
from common.data.labels import number_labels
from common.data.raw import RawSet, RawSplit, Sample
from common.data.support import listed, require
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
Table = tuple[str, "pa.Table"]  # with its name in a message


def tables_to_raw(
    train: Sequence[Table],
    test: Sequence[Table],
    config: DataConfig,
    names: tuple[str, ...],
    where: str,
    notes: tuple[str, ...] = (),
) -> RawSet:
    """Turn tables into a raw set.

    `names` are the class names in the order of the labels; () takes them from the labels themselves. Without test
    tables the set has no test split.
    Raises `UserError` for missing columns, missing values and labels that are no classes, see `number_labels`.
    """
    label = label_column(train[0][1].column_names, config.label, where)
    labels = read_column(label, [*train, *test])
    classes, numbers, more = number_labels(label, labels, len(train), names, where)
    notes, naturals = (*notes, *more), Column(())
    if config.partitioner == "natural":
        # test samples need no natural clients unless they are dealt to clients
        naturals = read_column(config.column, [*train, *test] if config.client_test else train)
        notes = (*notes, *naturals.notes)

    def split(tables: Sequence[Table], part: slice) -> RawSplit:
        samples = [sample for table in tables for sample in _samples(table, config)]
        return RawSplit(samples, np.concatenate(numbers[part]), naturals.array(part) if naturals.values[part] else None)

    training = split(train, slice(len(train)))
    testing = split(test, slice(len(train), None)) if test else None
    texts = [sample for part in (training, testing) if part for sample in part.samples if isinstance(sample, str)]
    if empty := sum(not text.strip() for text in texts):
        notes = (*notes, f"column {config.text!r}: {empty} of {len(texts)} texts are empty")
    return RawSet(training, testing, classes, notes)


def refuse_repeated(columns: Sequence[str], where: str) -> None:
    """Raise `UserError` if two columns have the same name."""
    if twice := [name for name, times in Counter(columns).items() if times > 1]:
        names = listed([repr(name) for name in twice])
        raise UserError(f"{where}: several columns have the name {names}: rename or remove all but one")


def label_column(columns: list[str], wanted: str, where: str) -> str:
    """Return the label column: the wanted one, else the first of the usual names; raises `UserError`."""
    for name in (wanted,) if wanted else LABEL_COLUMNS:
        if name in columns:
            return name
    looked_for = wanted or ", ".join(LABEL_COLUMNS)
    raise UserError(f"{where} has no label column {looked_for}: set data.label to one of {', '.join(columns)}")


def class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Return the class names in the Hugging Face metadata of a Parquet schema; () if it has none."""
    text = (schema.metadata or {}).get(b"huggingface")
    try:
        names = json.loads(text)["info"]["features"][label]["names"] if text else ()
        return tuple(map(str, names))
    except (ValueError, KeyError, TypeError):
        return ()


def _image_column(table: pa.Table, where: str) -> str:
    types = require("pyarrow.types", "reading tables of images")
    for name in IMAGE_COLUMNS:
        if name in table.column_names:
            kind = table.schema.field(name).type
            if types.is_struct(kind) and any(f.name == "bytes" and _is_binary(f.type) for f in kind):
                return name
    raise UserError(
        f"{where} has no image column: its columns are {', '.join(table.column_names)}; "
        f"name one of {', '.join(IMAGE_COLUMNS)}, a struct with the field `bytes`"
    )


def _is_binary(kind: pa.DataType) -> bool:
    types = require("pyarrow.types", "reading tables of images")
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _samples(table: Table, config: DataConfig) -> list[Sample]:
    where, content = table
    return _texts(content, config.text, where) if config.is_text else _bytes(content, where)


def _bytes(table: pa.Table, where: str) -> list[Sample]:
    compute = require("pyarrow.compute", "reading tables of images")
    column = _image_column(table, where)
    images = compute.struct_field(table.column(column), "bytes")
    if images.null_count:
        raise UserError(
            f"{where}: {images.null_count} images of column {column!r} have no bytes: store the images in the files"
        )
    found: list[Sample] = images.to_pylist()
    return found


def _texts(table: pa.Table, column: str, where: str) -> list[Sample]:
    if column not in table.column_names:
        raise UserError(f"{where} has no column {column!r}: set data.text to one of {', '.join(table.column_names)}")
    texts = decoded(table.column(column))
    if texts.null_count or not is_text(texts.type):
        raise UserError(
            f"{where}: column {column!r} is of type {texts.type} with {texts.null_count} missing values: "
            f"give every row a text, or set data.text to another column"
        )
    found: list[Sample] = texts.to_pylist()
    return found

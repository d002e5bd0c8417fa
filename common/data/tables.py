"""Arrow tables with a column of images or texts and one of labels, from files or the Hugging Face hub."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from common.data.raw import RawSet, RawSplit
from common.data.support import require
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")


def tables_to_raw(
    train: pa.Table, test: pa.Table | None, config: DataConfig, names: tuple[str, ...], where: str
) -> RawSet:
    """Turn tables into a raw set.

    `names` are the class names in the order of the labels; () takes them from the labels themselves. Classes of texts
    without names are numbered in the order of their labels, because sets of texts often count from 1.
    Raises `UserError` for missing columns, missing values and labels out of range.
    """
    label = label_column(train.column_names, config.label, where)
    tables = [train] if test is None else [train, test]
    columns = [_values(table, label, where) for table in tables]
    if columns[0].dtype.kind not in "iu" or (config.is_text and not names):
        names, columns = _number(columns)
    elif not names:
        names = tuple(str(number) for number in range(max(int(column.max(initial=0)) for column in columns) + 1))
    for column in columns:
        if column.size and not 0 <= column.min() <= column.max() < len(names):
            raise UserError(
                f"{where}: column {label!r} holds labels from {column.min()} to {column.max()}, but the set has "
                f"{len(names)} classes: name another column in data.label"
            )
    splits = []
    for table, column in zip(tables, columns, strict=True):
        # A test table needs no natural clients unless its samples are dealt to clients.
        dealt = table is train or config.client_test > 0
        natural = _values(table, config.column, where) if dealt and config.partitioner == "natural" else None
        samples = _texts(table, config.text, where) if config.is_text else _bytes(table, where)
        splits.append(RawSplit(samples, column.astype(np.int64), natural))
    return RawSet(splits[0], splits[1] if test is not None else None, names)


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
        return tuple(json.loads(text)["info"]["features"][label]["names"]) if text else ()
    except (ValueError, KeyError, TypeError):
        return ()


def _image_column(table: pa.Table, where: str) -> str:
    types = require("pyarrow.types", "reading tables of images")
    for name in IMAGE_COLUMNS:
        if name in table.column_names:
            kind = table.schema.field(name).type
            if types.is_struct(kind) and "bytes" in {field.name for field in kind}:
                return name
    raise UserError(
        f"{where} has no image column: its columns are {', '.join(table.column_names)}; "
        f"name one of {', '.join(IMAGE_COLUMNS)}, a struct with the field `bytes`"
    )


def _bytes(table: pa.Table, where: str) -> list[bytes]:
    compute = require("pyarrow.compute", "reading tables of images")
    column = _image_column(table, where)
    images = compute.struct_field(table.column(column), "bytes")
    if images.null_count:
        raise UserError(
            f"{where}: {images.null_count} images of column {column!r} have no bytes: store the images in the files"
        )
    return images.to_pylist()


def _texts(table: pa.Table, column: str, where: str) -> list[str]:
    if column not in table.column_names:
        raise UserError(f"{where} has no column {column!r}: set data.text to one of {', '.join(table.column_names)}")
    texts = table.column(column)
    types = require("pyarrow.types", "reading tables of texts")
    if texts.null_count or not (types.is_string(texts.type) or types.is_large_string(texts.type)):
        raise UserError(
            f"{where}: column {column!r} is of type {texts.type} with {texts.null_count} missing values: "
            f"give every row a text, or set data.text to another column"
        )
    return texts.to_pylist()


def _values(table: pa.Table, column: str, where: str) -> NDArray[np.generic]:
    """Return a column as integers or, if it holds anything else, as text."""
    if column not in table.column_names:
        raise UserError(f"{where} has no column {column!r}: choose one of {', '.join(table.column_names)}")
    values = table.column(column)
    if values.null_count:
        raise UserError(f"{where}: {values.null_count} values of column {column!r} are missing: fill or remove them")
    array = np.asarray(values.to_pylist())
    return array if array.dtype.kind in "iu" else array.astype(np.str_)


def _number(columns: list[NDArray[np.generic]]) -> tuple[tuple[str, ...], list[NDArray[np.generic]]]:
    """Replace names by their position in the sorted list of all names."""
    names = np.unique(np.concatenate(columns))
    return tuple(str(name) for name in names), [np.searchsorted(names, column) for column in columns]

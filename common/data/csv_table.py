"""A local folder of texts: train.csv and optionally test.csv, each with a row of column names."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from common.data.raw import RawSet
from common.data.support import require
from common.data.table_files import find_tables
from common.data.tables import refuse_repeated, tables_to_raw
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".csv"
INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")  # as a program writes a number: 007 is a text
DECIMAL = re.compile(r"[-+]?\d{1,15}\.\d*")
Columns = dict[str, list[str]]


def read_csv(root: Path, config: DataConfig) -> RawSet:
    """Read both files.

    Raises `UserError` if the training file is missing, or if a file is damaged or lacks a column.
    """
    files = find_tables(root, SUFFIX, loose=False)
    if not files.train:
        raise UserError(
            f"data.root {root} holds neither train*.parquet files nor train.csv: set it to a folder that does"
        )
    paths = (*files.train, *files.test)
    read = [_read(file) for file in paths]
    tables = [(file.name, _table(own, read, config.text)) for file, own in zip(paths, read, strict=True)]
    count = len(files.train)
    return tables_to_raw(tables[:count], tables[count:], config, (), str(root), files.notes)


def _read(file: Path) -> Columns:
    """Return a file's columns as it spells them. No row is guessed at: each has as many fields as there are columns."""
    reader = csv.reader(io.StringIO(_decoded(file), newline=""), strict=True)
    start = 1
    try:
        with _fields_of_any_length():
            names = [name.strip() for name in next(filter(None, reader), [])]
            if not names:
                raise UserError(f"{file} is empty: write a row of column names, and a row for each text")
            refuse_repeated(names, str(file))
            rows = []
            start = reader.line_num + 1
            for row in reader:
                if row and len(row) != len(names):
                    raise UserError(
                        f"{file}, line {start}: the row has {len(row)} fields, but the file has {len(names)} columns: "
                        f"put texts with commas, quotes or line breaks in quotes"
                    )
                rows += [row] if row else []
                start = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f"{file}, line {start}: the quotes of the row that begins here do not match ({error}): close every quote, "
            f"and write a quote inside a text twice"
        ) from error
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}


def _decoded(file: Path) -> str:
    content = b""
    try:
        content = file.read_bytes()
        return content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): copy it again") from error
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: the text is not UTF-8: save the file as UTF-8") from error


@contextmanager
def _fields_of_any_length() -> Iterator[None]:
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _table(own: Columns, files: Sequence[Columns], text: str) -> pa.Table:
    """Return a file's table, in which columns of numbers hold numbers: those that hold nothing else in any file."""
    arrow = require("pyarrow", "reading tables of texts")
    arrays = {}
    for name, values in own.items():
        everywhere = chain.from_iterable(columns.get(name, ()) for columns in files)
        if name == text or not all(INTEGER.fullmatch(value) or DECIMAL.fullmatch(value) for value in everywhere):
            arrays[name] = arrow.array(values, arrow.string())
        elif all(map(INTEGER.fullmatch, values)):
            arrays[name] = arrow.array(map(int, values), arrow.int64())
        else:
            arrays[name] = arrow.array(map(float, values), arrow.float64())
    return arrow.table(arrays)

"""A column of one value per row, checked as a whole over all files: integers, names or booleans, none missing."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.data.support import listed, require
from common.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

Value = int | str | bool
# Texts that programs write for a missing value, without None, which is a usual name too.
MISSING = frozenset(
    ("", "nan", "NaN", "NAN", "-nan", "-NaN", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "Null")
)
INTEGER, DECIMAL, TEXT, BOOLEAN = "integers", "decimal numbers", "texts", "booleans"


@dataclass(frozen=True)
class Column:
    """The values of a column, one list per table, all of one type."""

    values: tuple[list[Value], ...]
    notes: tuple[str, ...] = ()

    def array(self, tables: slice) -> NDArray[np.generic]:
        """Return these tables' values, as integers or as text."""
        array = np.asarray([value for part in self.values[tables] for value in part])
        return array if array.dtype.kind in "iu" else array.astype(np.str_)


def read_column(name: str, tables: Sequence[tuple[str, pa.Table]]) -> Column:
    """Return a column of several tables, given with the name of each in a message.

    Whole decimal numbers become integers, texts lose blanks at their ends and are put into one Unicode form; the notes
    say how many. Raises `UserError` for a column that is absent, has missing values, holds lists or the like, or is of
    different types in different tables.
    """
    columns = [_checked(name, where, table) for where, table in tables]
    kinds = dict[str, str]()
    for (where, _), column in zip(tables, columns, strict=True):
        if len(column):
            kinds.setdefault(_kind(name, where, column), where)
    if len(kinds) > 1:
        (kind, where), (other, elsewhere) = list(kinds.items())[:2]
        raise UserError(
            f"column {name!r} holds {kind} in {where} and {other} in {elsewhere}: write all of its values as one type"
        )
    clean: dict[str, Callable[[str, str, list[list[Any]]], Column]] = {DECIMAL: _whole, TEXT: _texts}
    values = [column.to_pylist() for column in columns]
    kind = next(iter(kinds), INTEGER)
    return clean[kind](name, tables[0][0], values) if kind in clean else Column(tuple(values))


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column's values in place of indices into a dictionary, as pandas stores categories."""
    types = require("pyarrow.types", "reading tables")
    return column.cast(column.type.value_type) if types.is_dictionary(column.type) else column


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column of this type holds texts."""
    types = require("pyarrow.types", "reading tables")
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _checked(name: str, where: str, table: pa.Table) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise UserError(f"{where} has no column {name!r}: choose one of {', '.join(table.column_names)}")
    column = decoded(table.column(name))
    if missing := _missing(column):
        raise UserError(f"{where}: {missing} values of column {name!r} are missing: fill them in, or remove their rows")
    return column


def _missing(column: pa.ChunkedArray) -> int:
    types, compute = require("pyarrow.types", "reading tables"), require("pyarrow.compute", "reading tables")
    if types.is_floating(column.type):
        return column.null_count + (compute.sum(compute.is_nan(column.cast("float64"))).as_py() or 0)
    if is_text(column.type):
        return sum(value is None or value.strip() in MISSING for value in column.to_pylist())
    return int(column.null_count)


def _kind(name: str, where: str, column: pa.ChunkedArray) -> str:
    types = require("pyarrow.types", "reading tables")
    tests: dict[str, Callable[[pa.DataType], bool]] = {
        INTEGER: types.is_integer, DECIMAL: types.is_floating, TEXT: is_text, BOOLEAN: types.is_boolean,
    }  # fmt: skip
    for kind, test in tests.items():
        if test(column.type):
            return kind
    raise UserError(
        f"{where}: column {name!r} holds values of type {column.type}: give every row one integer or one text"
    )


def _whole(name: str, where: str, values: list[list[float]]) -> Column:
    for value in (value for part in values for value in part):
        if not math.isfinite(value) or value != int(value):
            raise UserError(f"{where}: column {name!r} holds the number {value}: give every row an integer or a text")
    note = f"column {name!r} holds whole numbers of a decimal type: they count as integers"
    return Column(tuple([int(value) for value in part] for part in values), (note,))


def _texts(name: str, where: str, values: list[list[str]]) -> Column:
    spelled = Counter(value for part in values for value in part)
    clean = {value: unicodedata.normalize("NFC", value.strip()) for value in spelled}
    notes = []
    if changed := [value for value, text in clean.items() if value != text]:
        names = listed([repr(value) for value in sorted(changed)])
        notes.append(
            f"column {name!r}: {sum(spelled[value] for value in changed)} values have blanks at their ends or another "
            f"Unicode form of the same letters, and count without them ({names})"
        )
    return Column(tuple([clean[value] for value in part] for part in values), tuple(notes))

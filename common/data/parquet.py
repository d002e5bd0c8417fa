"""A local folder of Parquet files: train-*.parquet and optionally test-*.parquet (or valid*, val*)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.data.raw import RawSet
from common.data.support import one_line, require
from common.data.tables import class_names, label_column, tables_to_raw
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    import pyarrow as pa

TEST_PREFIXES = ("test", "val")


def parquet_files(root: Path) -> list[Path]:
    """Return the Parquet files of a folder, sorted by name."""
    return sorted(root.glob("*.parquet"))


def read_parquet(root: Path, config: DataConfig) -> RawSet:
    """Read the training and test files of a folder, shards in the order of their names.

    Raises `UserError` if the training files are missing, or if a file is damaged.
    """
    files = parquet_files(root)
    train = [file for file in files if file.name.startswith("train")]
    if not train:
        raise UserError(f"{root} has Parquet files but none is named train*.parquet: rename the training files")
    test = next((found for prefix in TEST_PREFIXES if (found := [f for f in files if f.name.startswith(prefix)])), [])
    table = _read(train)
    names = class_names(table.schema, label_column(table.column_names, config.label, str(root)))
    return tables_to_raw(table, _read(test) if test else None, config, names, str(root))


def _read(files: list[Path]) -> pa.Table:
    arrow = require("pyarrow", "reading Parquet files")
    parquet = require("pyarrow.parquet", "reading Parquet files")
    tables = []
    for file in files:
        try:
            tables.append(parquet.read_table(file))
        except (OSError, arrow.ArrowException) as error:
            raise UserError(
                f"{file} cannot be read as Parquet ({one_line(error)}): download or copy it again"
            ) from error
    try:
        return arrow.concat_tables(tables)
    except arrow.ArrowException as error:
        raise UserError(
            f"{files[0].parent}: its Parquet files differ in their columns ({one_line(error)}): "
            f"keep only files of one set in a folder"
        ) from error

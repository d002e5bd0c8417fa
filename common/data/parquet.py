"""A local folder of Parquet files: train-*.parquet and optionally test-*.parquet (or valid*, val*)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.data.raw import RawSet
from common.data.support import one_line, require
from common.data.table_files import find_tables, tables
from common.data.tables import Table, class_names, label_column, refuse_repeated, tables_to_raw
from common.errors import UserError
from common.sections.data import DataConfig

SUFFIX = ".parquet"


def parquet_files(root: Path) -> list[Path]:
    """Return the Parquet files of a folder, sorted by name."""
    return tables(root, SUFFIX)


def read_parquet(root: Path, config: DataConfig) -> RawSet:
    """Read the training and test files of a folder, shards in the order of their names.

    Raises `UserError` if the training files or a shard are missing, or if a file is damaged.
    """
    files = find_tables(root, SUFFIX, loose=True)
    if not files.train:
        raise UserError(f"{root} has Parquet files but none is named train*.parquet: rename the training files")
    train, test = _read(files.train), _read(files.test)
    names = _class_names([*train, *test], config, str(root))
    return tables_to_raw(train, test, config, names, str(root), files.notes)


def _read(files: Sequence[Path]) -> list[Table]:
    arrow = require("pyarrow", "reading Parquet files")
    parquet = require("pyarrow.parquet", "reading Parquet files")
    found: list[Table] = []
    for path in files:
        try:
            with parquet.ParquetFile(path) as file:
                refuse_repeated(file.schema_arrow.names, str(path))
                table = file.read()
                table.validate(full=True)  # texts that are not UTF-8
        except (OSError, arrow.ArrowException) as error:
            raise UserError(
                f"{path} cannot be read as Parquet ({one_line(error)}): download or copy it again"
            ) from error
        if found and set(table.column_names) != set(found[0][1].column_names):
            raise UserError(
                f"{path.parent}: its Parquet files differ in their columns ({found[0][0]} has "
                f"{', '.join(found[0][1].column_names)}, {path.name} has {', '.join(table.column_names)}): "
                f"keep only files of one set in a folder"
            )
        found.append((path.name, table))
    return found


def _class_names(read: Sequence[Table], config: DataConfig, where: str) -> tuple[str, ...]:
    """Return the class names that the files agree on; a file may have none. Raises `UserError` if they differ."""
    label = label_column(read[0][1].column_names, config.label, where)
    found = {names: file for file, table in read if (names := class_names(table.schema, label))}
    if len(found) > 1:
        raise UserError(
            f"{where}: {' and '.join(list(found.values())[:2])} name the classes of column {label!r} differently: "
            f"keep only files of one set in a folder"
        )
    return next(iter(found), ())

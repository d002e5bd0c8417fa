"""A local folder of texts: train.csv and optionally test.csv, each with a row of column names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from common.data.raw import RawSet
from common.data.support import one_line, require
from common.data.tables import tables_to_raw
from common.errors import UserError
from common.sections.data import DataConfig

if TYPE_CHECKING:
    import pyarrow as pa

TRAIN, TEST = "train.csv", "test.csv"


def csv_files(root: Path) -> list[Path]:
    """Return those of the two files that exist."""
    return [root / name for name in (TRAIN, TEST) if (root / name).is_file()]


def read_csv(root: Path, config: DataConfig) -> RawSet:
    """Read both files.

    Raises `UserError` if the training file is missing, or if a file is damaged or lacks a column.
    """
    if not (root / TRAIN).is_file():
        raise UserError(
            f"data.root {root} holds neither train*.parquet files nor {TRAIN}: set it to a folder that does"
        )
    test = _read(root / TEST, config) if (root / TEST).is_file() else None
    return tables_to_raw(_read(root / TRAIN, config), test, config, (), str(root))


def _read(file: Path, config: DataConfig) -> pa.Table:
    arrow, csv = require("pyarrow", "reading CSV files"), require("pyarrow.csv", "reading CSV files")
    try:
        return csv.read_csv(
            file,
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types={config.text: arrow.string()}),
        )
    except (OSError, arrow.ArrowException) as error:
        raise UserError(f"{file} cannot be read as CSV ({one_line(error)}): repair it") from error

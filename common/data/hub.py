"""A set from the Hugging Face hub, downloaded once and kept by the `datasets` package in its own cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.data.raw import RawSet
from common.data.support import one_line, require
from common.data.tables import label_column, tables_to_raw
from common.errors import UserError
from common.sections.data import DataConfig
from common.sections.data_sets import HUB_SETS

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


def read_hub(config: DataConfig) -> RawSet:
    """Download (or find in the cache) a set known by name.

    Raises `UserError` if the download fails, or if the set lacks a configured column.
    """
    known = HUB_SETS[config.name]
    train = _download(config.name, "train")
    test = _download(config.name, known.test_split)
    label = label_column(train.column_names, config.label, known.repository)
    names = tuple(getattr(train.features[label], "names", ()))
    tables = [[(f"{known.repository} ({split.split})", _table(split))] for split in (train, test)]
    return tables_to_raw(tables[0], tables[1], config, names, known.repository)


def _download(name: str, split: str) -> datasets.Dataset:
    package = require("datasets", f"downloading the set {name!r}")
    known = HUB_SETS[name]
    try:
        return package.load_dataset(known.repository, known.subset, split=split)
    except Exception as error:  # the packages below raise many kinds; to the user each is a failed download
        raise UserError(
            f"the set {name!r} cannot be downloaded from the Hugging Face hub as {known.repository!r} "
            f"({one_line(error)}): check the network, or set data.root to a local folder that holds its Parquet files"
        ) from error


def _table(split: datasets.Dataset) -> pa.Table:
    """Return the Arrow table, in which images are still encoded."""
    return split.with_format("arrow")[:]

import os
from pathlib import Path

import pytest

from common.data.table_files import find_tables, tables
from common.errors import UserError


def _make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).touch()
    return root


def _names(root: Path, *, loose: bool = True) -> tuple[list[str], list[str], tuple[str, ...]]:
    found = find_tables(root, ".parquet", loose=loose)
    return [file.name for file in found.train], [file.name for file in found.test], found.notes


@pytest.mark.parametrize(
    ("files", "train", "test"),
    [
        (["train.parquet", "test.parquet"], ["train.parquet"], ["test.parquet"]),
        (["Training.PARQUET", "Validation.parquet"], ["Training.PARQUET"], ["Validation.parquet"]),
        (["train-00001-of-00002.parquet", "train-00000-of-00002.parquet"],
         ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], []),
        (["train-1-of-2.parquet", "train-2-of-2.parquet"], ["train-1-of-2.parquet", "train-2-of-2.parquet"], []),
        (["train-00000-of-00001-a09b74b3.parquet"], ["train-00000-of-00001-a09b74b3.parquet"], []),
        (["train.parquet", "._train.parquet", ".hidden", "README.md"], ["train.parquet"], []),
    ],
)  # fmt: skip
def test_splits_are_found_by_name(tmp_path: Path, files: list[str], train: list[str], test: list[str]) -> None:
    assert _names(_make(tmp_path, *files)) == (train, test, ())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], r"1 of the 3 shards of 'train' are absent \(train-00001-of"),
        (["train-00001-of-00002"], r"1 of the 2 shards of 'train' are absent \(train-00000-of-00002\.parquet\)"),
        (["train", "test-00001-of-00002"], r"shards of 'test' are absent \(test-00000-of-00002\.parquet\)"),
        (["train-00000-of-00002", "train-00005-of-00002"], r"1 of the 2 shards .*train-00001-of-00002"),
        (["train", "val-00000-of-00002"], r"shards of 'val' are absent"),
        (["train-0-of-99999999"], r"99999998 of the 99999999 shards .*train-10-of-99999999\.parquet, \.\.\.\)"),
        (["train-00000-of-00001-aa", "train-00000-of-00001-bb"], "are the same shard: keep one of them"),
    ],
)
def test_incomplete_series_is_refused(tmp_path: Path, files: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _names(_make(tmp_path, *(f"{name}.parquet" for name in files)))


def test_tables_that_are_not_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    files = ["train.parquet", "train.csv", "test.parquet", "val.parquet", "x.xlsx"]
    *_, notes = _names(_make(tmp_path, *files))
    assert notes == (f"4 other files or folders in {tmp_path} are not used: train.csv, train/, val.parquet, x.xlsx",)


def test_files_that_are_read_together_are_named(tmp_path: Path) -> None:
    *_, notes = _names(_make(tmp_path, "train.parquet", "train_old.parquet"))
    assert notes == ("files that are no single series are read as one split: train.parquet, train_old.parquet",)
    train, _, notes = _names(tmp_path, loose=False)
    assert (train, len(notes)) == (["train.parquet"], 1)


def test_folder_that_cannot_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"the folder \S+ cannot be read \(Permission denied\): change"):
        tables(tmp_path, ".parquet")

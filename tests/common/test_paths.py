import argparse
import os
from pathlib import Path

import pytest

from common.errors import UserError
from common.paths import check_writable, output_file


def test_missing_folder_is_made(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "")
    assert (tmp_path / "a" / "b").is_dir()


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/runs cannot be written \(Not a directory\): set run\.root"):
        check_writable(tmp_path / "file" / "runs", "set run.root")


def test_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(UserError, match=r"cannot be written \(permission denied\): set FLWR_HOME"):
        check_writable(tmp_path, "set FLWR_HOME")


def test_output_file_is_one_that_can_be_written(tmp_path: Path) -> None:
    assert output_file(str(tmp_path / "new" / "a.json")) == tmp_path / "new" / "a.json"
    with pytest.raises(argparse.ArgumentTypeError, match=r"is a folder: name a file in it"):
        output_file(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(argparse.ArgumentTypeError, match=r"\(File exists\): name a file in another folder"):
        output_file(str(tmp_path / "file" / "a.json"))

import os
from pathlib import Path

import pytest

from common.data.fingerprint import fingerprint, look_again


def _now(folder: Path, *, deep: bool = True) -> str:
    look_again()
    return fingerprint(str(folder), deep=deep)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "ring").mkdir()
    (tmp_path / "ring" / "0.png").write_text("zero")
    return tmp_path


def _replace_with_equal_size_and_time(file: Path) -> None:
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text("null")
    os.utime(file, ns=times)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "ring" / "0.png").write_text("other"),
        lambda folder: _replace_with_equal_size_and_time(folder / "ring" / "0.png"),
        lambda folder: (folder / "ring" / "0.png").rename(folder / "ring" / "1.png"),
        lambda folder: (folder / "ring" / "0.png").unlink(),
        lambda folder: (folder / "ring" / "1.png").symlink_to("nowhere"),
        lambda folder: (folder / "ring").rename(folder / "cross"),
    ],
)
def test_every_change_is_seen(folder: Path, change) -> None:
    before = _now(folder)
    change(folder)
    assert fingerprint(str(folder), deep=True) == before
    assert _now(folder) != before


def test_hidden_files_and_unchanged_ones_do_not_count(folder: Path) -> None:
    before = _now(folder)
    (folder / "ring" / ".DS_Store").write_text("x")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "0.png").write_text("x")
    assert _now(folder) == before


def test_linked_folder_is_followed_once(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(elsewhere)
    before = _now(folder)
    (elsewhere / "0.png").write_text("x")
    assert _now(folder) != before


def test_shallow_look_ignores_folders_below(folder: Path) -> None:
    before = _now(folder, deep=False)
    (folder / "ring" / "0.png").write_text("other")
    assert _now(folder, deep=False) == before
    (folder / "train.csv").write_text("x")
    assert _now(folder, deep=False) != before

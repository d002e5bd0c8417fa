import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from common.data.cache import cached, content_key, write_rows
from common.errors import UserError


def _read(folder: Path) -> str:
    return (folder / "text").read_text()


def test_folder_is_filled_once(tmp_path: Path) -> None:
    calls = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "text").write_text("hello")

    assert [cached(tmp_path / "new", "k", fill, _read) for _ in range(2)] == ["hello", "hello"]
    assert len(calls) == 1
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["k"]


def test_failed_fill_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "text").write_text("half")
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        cached(tmp_path, "k", fill, _read)
    assert list(tmp_path.iterdir()) == []


def test_damaged_folder_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    assert cached(tmp_path, "k", lambda f: (f / "text").write_text("good") and None, _read) == "good"


def test_empty_array_of_a_power_cut_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    (tmp_path / "k" / "a.npy").touch()

    def read(folder: Path) -> int:
        return int(np.load(folder / "a.npy").sum())

    assert cached(tmp_path, "k", lambda folder: np.save(folder / "a.npy", np.ones(3)), read) == 3


def test_what_killed_processes_left_is_removed_the_next_day(tmp_path: Path) -> None:
    for name, hours in ((".k-old", 25), (".k-new", 23), (".other-old", 25)):
        (tmp_path / name).mkdir()
        then = time.time() - 3600 * hours
        os.utime(tmp_path / name, (then, then))
    cached(tmp_path, "k", lambda f: (f / "text").write_text("good") and None, _read)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".k-new", ".other-old", "k"]


def test_processes_that_remove_the_same_leftovers_do_not_disturb_each_other(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f".k-{number}").mkdir()
        os.utime(tmp_path / f".k-{number}", (0, 0))
    start, found = threading.Barrier(4), list[str]()

    def work() -> None:
        start.wait(10)
        found.append(cached(tmp_path, "k", lambda f: (f / "text").write_text("good") and None, _read))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["good"] * 4


def test_slower_process_uses_the_folder_of_the_quicker(tmp_path: Path) -> None:
    both_started = threading.Barrier(2)
    results = []

    def work(name: str) -> None:
        def fill(folder: Path) -> None:
            (folder / "text").write_text(name)
            both_started.wait(10)

        results.append(cached(tmp_path, "k", fill, _read))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0] == results[1] == _read(tmp_path / "k")
    assert [p.name for p in tmp_path.iterdir()] == ["k"]


def test_unwritable_cache_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="prepared data cannot be written into"):
        cached(tmp_path / "file", "k", lambda f: None, _read)


def test_key_changes_with_every_part() -> None:
    assert content_key("a", 1) == content_key("a", 1) != content_key("a", 2)


@pytest.mark.parametrize("kind", ["|u1", "<i4"])
def test_write_rows_makes_an_array_file(tmp_path: Path, kind: str) -> None:
    rows = np.arange(24, dtype=kind).reshape(4, 2, 3)
    # Not contiguous, as decoded images are not.
    write_rows(tmp_path / "a.npy", (4, 3, 2), np.dtype(kind), (row.T for row in rows))
    found = np.load(tmp_path / "a.npy", mmap_mode="r")
    np.testing.assert_array_equal(found, rows.transpose(0, 2, 1))
    assert found.dtype.str == kind

import os
import resource

import pytest
import torch

from common.errors import UserError
from common.storage import files as storage
from common.storage.files import StorageError, append_line, read_tensors, read_values, write_tensors, write_text


def test_tensors_and_values_are_read_back(tmp_path):
    tensors = {"a": torch.randn(2, 3), "n": torch.tensor(4), "half": torch.ones(2, dtype=torch.bfloat16)}
    values = {"round": 3, "names": ["x", "ü"], "nested": {"k": None}}
    write_tensors(tmp_path / "s.safetensors", tensors, values)
    read, plain = read_tensors(tmp_path / "s.safetensors")
    assert plain == values == read_values(tmp_path / "s.safetensors")
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert torch.equal(read[name], value)
        assert read[name].dtype == value.dtype


def test_views_are_written_as_their_visible_values(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    write_tensors(tmp_path / "s", {"column": whole[:, 1], "turned": whole.T}, {})
    read, _ = read_tensors(tmp_path / "s")
    assert torch.equal(read["column"], whole[:, 1])
    assert torch.equal(read["turned"], whole.T)


def test_parameters_need_no_detaching(tmp_path):
    write_tensors(tmp_path / "s", torch.nn.Linear(2, 2).state_dict(keep_vars=True), {})
    assert not read_tensors(tmp_path / "s")[0]["weight"].requires_grad


@pytest.mark.parametrize("write", ["tensors", "text"])
def test_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch, write):
    path = tmp_path / "file"

    def put(number: int) -> None:
        if write == "tensors":
            write_tensors(path, {"a": torch.tensor(number)}, {})
        else:
            write_text(path, str(number))

    put(1)
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        put(2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_replaced(tmp_path):
    write_text(tmp_path / "t", "old")
    write_text(tmp_path / "t", "new")
    assert (tmp_path / "t").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_temporary_files_are_distinct_and_keep_the_umask(tmp_path):
    path = tmp_path / "t"
    with storage._replacing(path) as one, storage._replacing(path) as two:  # as in two containers
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
    umask = os.umask(0o022)
    try:
        write_text(path, "new")
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o644


def test_missing_and_damaged_files_are_reported(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_tensors(tmp_path / "none")
    path = tmp_path / "s"
    write_tensors(path, {"a": torch.randn(1000)}, {"x": 1})
    whole = path.read_bytes()
    for damaged in (b"", whole[:50], whole[:-1], b"\x00" * 64, b"\xff" * 64):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            read_tensors(path)


def test_file_without_values_has_none(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "s")
    assert read_tensors(tmp_path / "s")[1] == {}


def test_appended_line_is_on_the_disk_when_it_counts(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(storage.os, "fsync", lambda _: synced.append((tmp_path / "lines").read_text()))
    for line in ("first", "second"):
        append_line(tmp_path / "lines", line)
    assert synced == ["first\n", "first\nsecond\n"]


def test_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "first")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the kernel then fails a write half-way
    try:
        with pytest.raises(StorageError, match=rf"lines cannot be written into {tmp_path}: .*File too large"):
            append_line(path, "second")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "first\n"
    append_line(path, "third")
    assert path.read_text() == "first\nthird\n"

"""The JSON file of an export: what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.onnx.folder import FILE, Stored, describe, is_exported, read_exported, read_stored

KINDS = ("network", "split", "student")
VALUES: dict[str, Any] = {
    "format": 1, "kind": "network", "run": "a", "network": "lenet", "classes": ["x", "y"], "exits": [1, 3],
    "carries": False, "cut": 0, "feature_shape": [],
    "input": {"kind": "images", "channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.5]},
    "policy": {"measure": "softmax", "thresholds": [None]},
    "segments": [{"file": f"segment-{k}.onnx", "bytes": 1, "sha256": "0", "macs": k} for k in (1, 2)],
    "largest_difference": 0.0, "versions": {},
}  # fmt: skip
TEXTS = {"kind": "texts", "length": 4, "vocabulary": 9}


def write(folder: Path, **changes: Any) -> Path:
    (folder / FILE).write_text(json.dumps({**VALUES, **changes}))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    for path in (write(tmp_path), tmp_path / FILE):
        folder, exported = read_exported(path, KINDS)
        assert folder == tmp_path
        assert (exported.shape, exported.vocabulary, exported.carries) == ((1, 8, 8), 0, False)
        assert exported.exit_policy().thresholds == (float("inf"),)
    _, texts = read_exported(write(tmp_path, input=TEXTS, carries=True), KINDS)
    assert (texts.shape, texts.vocabulary, texts.carries) == ((4,), 9, True)
    assert is_exported(tmp_path)
    assert not is_exported(tmp_path / "absent")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "has format 2, this version of EarlyBloom reads format 1"),
        ({"kind": "teacher"}, "is damaged .kind"),
        ({"secret": 1}, "is damaged .secret"),
        ({"classes": None}, "is damaged .classes"),
        ({"exits": [1, 2, 3]}, "2 segments for 3 exits"),
        ({"cut": 2}, "a half of a split network has a cut and the shape"),
        ({"kind": "student"}, "only a student has a student's fields"),
        ({"policy": {"measure": "guess", "thresholds": []}}, "policy is damaged"),
        ({"policy": {"thresholds": "x"}}, "policy is damaged"),
        ({"input": {**TEXTS, "pattern": "."}}, "its texts became token ids in another way"),
        ({"input": {**VALUES["input"], "std": [0.0]}}, "constants to divide by are above 0"),
        ({"input": {**VALUES["input"], "mean": [0.1, 0.2]}}, "2 constants for 1 channels"),
        ({"segments": [{**VALUES["segments"][0], "file": "../x.onnx"}, VALUES["segments"][1]]}, "segments.0.file"),
    ],
)
def test_wrong_values_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_exported(write(tmp_path, **changes), KINDS)


def test_missing_and_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no exported model in"):
        read_exported(tmp_path, KINDS)
    for text in ("{", "[]", "{}", '{"format": 1}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(UserError, match="is damaged"):
            read_exported(tmp_path, KINDS)
    with pytest.raises(UserError, match="is a network that answers alone: give a student"):
        read_exported(write(tmp_path), ("student",))


def test_a_stored_file_is_the_one_that_was_described(tmp_path: Path) -> None:
    described = Stored(**describe("a.onnx", b"content"))
    with pytest.raises(UserError, match="cannot be read"):
        read_stored(tmp_path, described)
    for content, message in ((b"contents", "8 bytes instead of 7"), (b"konTent", "its digest differs")):
        (tmp_path / "a.onnx").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_stored(tmp_path, described)
    (tmp_path / "a.onnx").write_bytes(b"content")
    assert read_stored(tmp_path, described) == b"content"

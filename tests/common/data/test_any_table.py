"""Random tables: every row is used and counted, or one message says what is wrong."""

import csv
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from common.data import DataConfig, load
from common.data.fingerprint import look_again
from common.errors import UserError

pytestmark = pytest.mark.timeout(60)

LETTERS = st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4)
LABELS: dict[str, st.SearchStrategy[Any]] = {
    "integers": st.integers(0, 3),
    "any integers": st.integers(-2, 2**70),
    "decimals": st.sampled_from([0.0, 1.0, 2.5, float("nan"), float("inf")]),
    "names": st.sampled_from(["cat", "dog", "dog ", "CAT", "é", "e\u0301"]),
    "numbers as texts": st.sampled_from(["1", "1.0", "01", "2", "-1", "nan", "NA", ""]),
    "any texts": LETTERS,
    "lists": st.lists(st.integers(0, 1), max_size=2),
    "booleans": st.booleans(),
    "missing": st.sampled_from([0, 1, None]),
}
KINDS = st.sampled_from(sorted(LABELS))


@st.composite
def sets(draw: st.DrawFn) -> dict[str, list[tuple[str, Any]]]:
    """Return (text, label) rows by file name without suffix; usually of one type, sometimes with a shard missing."""
    usual, files = draw(KINDS), {}
    for split in ("train", "test")[: draw(st.integers(1, 2))]:
        total = draw(st.integers(1, 3))
        for shard in range(total):
            kind = usual if draw(st.integers(0, 9)) else draw(KINDS)
            rows = draw(st.lists(st.tuples(LETTERS, LABELS[kind]), max_size=6))
            files[f"{split}-{shard:05d}-of-{total:05d}"] = rows
    if draw(st.sampled_from([False] * 9 + [True])):
        files.pop(draw(st.sampled_from(sorted(files))))
    return files


def _write(root: Path, files: dict[str, list[tuple[str, Any]]], suffix: str) -> None:
    for name, rows in files.items():
        path = root / f"{name}.{suffix}"
        if suffix == "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
        else:
            labels = [label for _, label in rows]
            pq.write_table(pa.table({"text": pa.array([text for text, _ in rows], pa.string()), "label": labels}), path)


@settings(derandomize=True, max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(files=sets(), suffix=st.sampled_from(["csv", "parquet"]))
def test_every_row_is_used_or_one_error_says_why(files: dict[str, list[tuple[str, Any]]], suffix: str) -> None:
    look_again()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        try:
            _write(root, files, suffix)
        except (pa.ArrowException, OverflowError):
            return  # no such table can be written
        try:
            data = load(DataConfig(name="text", root=name, length=2, vocabulary=9), None)
        except UserError as error:
            event("error: " + str(error).partition(":")[2][:12])
            assert "\n" not in str(error)
            return
    event("read")
    rows = [row for content in files.values() for row in content]
    assert len(data.train) + len(data.test) == len(rows)
    counts = Counter(data.train.labels.tolist() + data.test.labels.tolist())
    expected = Counter(str(label) for _, label in rows)
    if len(expected) == len(data.classes):
        assert sorted(counts.values()) == sorted(expected.values())
    else:
        assert any("blanks at their ends" in note for note in data.notes)
    assert {"nan", "", "None"}.isdisjoint(data.classes) or any("'None' counts" in note for note in data.notes)
    assert set(data.test.labels.tolist()) <= set(range(len(data.classes)))


@settings(derandomize=True, max_examples=60, deadline=None, database=None)
@given(
    labels=st.lists(st.sampled_from(["cat", "dog", "é"]), min_size=12, max_size=30).filter(lambda x: len(set(x)) > 1),
    cut=st.integers(2, 10),
    suffix=st.sampled_from(["csv", "parquet"]),
)
def test_sound_tables_are_always_read(labels: list[str], cut: int, suffix: str) -> None:
    look_again()
    rows = [(f'a "quoted", {number}\nline', label) for number, label in enumerate(labels)]
    files = {"train-00000-of-00002": rows[:cut], "train-00001-of-00002": rows[cut:], "test": rows}
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name), files, suffix)
        data = load(DataConfig(name="text", root=name, length=2, vocabulary=9), None)
    assert [data.classes[label] for label in data.train.labels.tolist()] == labels
    assert [data.classes[label] for label in data.test.labels.tolist()] == labels
    assert data.notes == ()

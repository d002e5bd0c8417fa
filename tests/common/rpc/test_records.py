import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from common.rpc import records
from common.rpc.records import Assembly, pieces, put_together, take_apart


def content() -> RecordDict:
    return RecordDict(
        {
            "values": ConfigRecord({"text": "ä", "flag": True, "node": 2**64 - 1}),
            "model": ArrayRecord({"a": Array(np.arange(700, dtype=np.float32)), "b": Array(np.array(3))}),
            "loss": MetricRecord({"x": [1.0, float("inf")]}),
            "empty": ArrayRecord(),
        }
    )


def same(one: RecordDict, other: RecordDict) -> bool:
    return bool(recorddict_to_proto(one) == recorddict_to_proto(other))


@pytest.fixture(params=[1, 100, 1 << 20], autouse=True)
def piece(request, monkeypatch):
    monkeypatch.setattr(records, "PIECE", request.param)


def test_content_arrives_equal_in_pieces_of_any_size():
    parts = take_apart(content())
    assembly = Assembly([len(part) for part in parts])
    for piece in pieces(parts):
        assert not assembly.complete
        assembly.add(piece)
    assert assembly.complete
    assert same(assembly.content(), content())


def test_content_without_a_byte_is_complete_at_once():
    parts = take_apart(RecordDict())
    assert [bytes(part) for part in parts] == [b""]
    assert same(Assembly([0]).content(), RecordDict())


def test_array_data_are_not_copied_and_the_content_stays():
    original = content()
    parts = take_apart(original)
    assert parts[1] is original["model"]["a"].data
    assert same(original, content())


@pytest.mark.parametrize("sizes", [[], [1 << 31, 1]])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="announced"):
        Assembly(sizes)


def test_announced_memory_is_not_taken():
    Assembly([1 << 31])  # would fail or take seconds if it were


@pytest.mark.parametrize("length", [0, 2])
def test_piece_of_another_length_is_refused(length, monkeypatch):
    monkeypatch.setattr(records, "PIECE", 1)
    with pytest.raises(ValueError, match="3 are missing"):
        Assembly([3]).add(bytes(length))


def test_piece_after_the_last_is_refused():
    assembly = Assembly([1])
    assembly.add(b"x")
    with pytest.raises(ValueError, match="0 are missing"):
        assembly.add(b"x")


@pytest.mark.parametrize("change", [lambda p: p[:-1], lambda p: [*p, b"x"], lambda p: [b"\xff" * 9, *p[1:]]])
def test_other_parts_are_no_content(change):
    with pytest.raises(ValueError, match=r"arrays came|not a message's content"):
        put_together(change(take_apart(content())))

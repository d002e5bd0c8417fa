import random

import pytest

from common.rpc import framing
from common.rpc.split_pb2 import Batch, Features, Header, TrainMessage

HEADER = Header(run="r", client=3, cut=2, round=5, version=1 << 40, index=70000)


def message(**fields) -> TrainMessage:
    return TrainMessage(header=HEADER, batch=Batch(features=Features(shape=[2, 3]), labels=[1, 300]), **fields)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 70_000])
def test_wire_form_equals_that_of_protobuf(size):
    data = random.Random(size).randbytes(size)
    raw = framing.join(message(), memoryview(data))
    assert TrainMessage.FromString(raw) == message(data=data)
    assert raw == message(data=data).SerializeToString()


@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
def test_data_is_found_without_a_copy(size):
    raw = message(data=bytes(size)).SerializeToString()
    head, data = framing.split(raw)
    assert TrainMessage.FromString(head) == message()
    assert bytes(data) == bytes(size)
    assert data.obj is raw or not size


def test_data_may_be_at_any_position():
    raw = TrainMessage(data=b"abc").SerializeToString() + message().SerializeToString()
    head, data = framing.split(raw)
    assert (TrainMessage.FromString(head), bytes(data)) == (message(), b"abc")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x7a\x05abc",  # shorter than announced
        b"\x7a",
        b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a length without an end
        b"\x0b",  # a group
        b"\x08",
        b"\x09abc",
        b"\x7a\x01a\x7a\x01b",
    ],
)
def test_malformed_messages_are_refused(raw):
    with pytest.raises(ValueError, match="malformed"):
        framing.split(raw)


def test_size_of_other_fields_is_bounded():
    framing.split(framing.join(message(), bytes(2 * framing.HEAD_BYTES)))
    huge = TrainMessage(batch=Batch(labels=[1] * (framing.HEAD_BYTES + 1)))
    with pytest.raises(ValueError, match="beside the data"):
        framing.split(huge.SerializeToString())


def test_noise_raises_only_value_error():
    noise = random.Random(1)
    valid = framing.join(message(), b"some data")
    outcomes = set()
    for _ in range(3000):
        raw = bytearray(valid)
        for _ in range(noise.randint(1, 4)):
            raw[noise.randrange(len(raw))] = noise.randrange(256)
        try:
            head, data = framing.split(bytes(raw[: noise.randint(1, len(raw))]))
            outcomes.add("read")
            assert len(head) + len(data) <= len(raw)
        except ValueError:
            outcomes.add("refused")
    assert outcomes == {"read", "refused"}

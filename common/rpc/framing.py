"""Write and read a message's one large bytes field without protobuf's copies.

Protobuf copies a bytes field two or three times on either side, which for 16 MiB of features takes longer than sending
them. In all our messages that field is `bytes data = 15`. It is appended here to the serialized other fields and found
again without a copy. The bytes on the wire are those that protobuf itself would write and read.
"""

from google.protobuf.message import Message

from common.rpc.split_pb2 import BF16, FP16, FP32, UINT8

CODINGS = {"fp32": FP32, "fp16": FP16, "bf16": BF16, "uint8": UINT8}
TAG = 15 << 3 | 2  # field 15, length-delimited
HEAD_BYTES = 1 << 20  # of all other fields; more are refused before they are parsed into lists
Data = bytes | memoryview


def join(head: Message, data: Data = b"") -> bytes:
    """Return the wire form of a message without `data`, with `data` (C-contiguous bytes) as that field."""
    if not len(data):
        return head.SerializeToString()
    return b"".join((head.SerializeToString(), bytes([TAG]), _varint(len(data)), data))


def split(raw: bytes) -> tuple[bytes, memoryview]:
    """Return the wire form of all fields but `data`, and `data` as a view; raises `ValueError` unless well-formed."""
    view = memoryview(raw)
    head: list[memoryview] = []
    data: memoryview | None = None
    start = size = 0
    while start < len(raw):
        tag, position = _read_varint(raw, start)
        begin, end = _value(raw, position, tag & 7)
        if end > len(raw):
            raise ValueError("malformed message: a field is longer than the message")
        if tag == TAG and data is not None:
            raise ValueError("malformed message: data comes twice")
        if tag == TAG:
            data = view[begin:end]
        else:
            head.append(view[start:end])
            size += end - start
        if size > HEAD_BYTES:
            raise ValueError(f"malformed message: more than {HEAD_BYTES} bytes beside the data")
        start = end
    return b"".join(head), memoryview(b"") if data is None else data


def _value(raw: bytes, position: int, wire_type: int) -> tuple[int, int]:
    """Return the begin and end of a field's value."""
    if wire_type == 0:
        return position, _read_varint(raw, position)[1]
    if wire_type == 2:
        length, position = _read_varint(raw, position)
        return position, position + length
    if wire_type in (1, 5):
        return position, position + (8 if wire_type == 1 else 4)
    raise ValueError(f"malformed message: wire type {wire_type}")


def _varint(value: int) -> bytes:
    groups = bytearray()
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _read_varint(raw: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(raw):
            break
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("malformed message: a number does not end")

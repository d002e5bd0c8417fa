"""A message's content in pieces: what an order or a reply of the rounds' stream is made of.

Its arrays' data are sent as they are, without protobuf's copies, so a model that many nodes get is in memory once.
"""

from collections.abc import Iterator, Sequence
from io import BytesIO

from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

PIECE = 1 << 20  # bytes of a frame's piece
FRAME = PIECE + (1 << 20)  # bytes of a whole frame, at most
LIMIT = 1 << 31  # bytes of a whole content


def take_apart(content: RecordDict) -> list[bytes]:
    """Return the content without its arrays' data, serialized, and the data of each array, which are not copied."""
    bare, data = RecordDict(), list[bytes]()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            data += [array.data for array in record.values()]
            bare[name] = ArrayRecord({key: _with(array, b"") for key, array in record.items()})
        else:
            bare[name] = record
    return [recorddict_to_proto(bare).SerializeToString(), *data]


def put_together(parts: Sequence[bytes]) -> RecordDict:
    """Return the content that `take_apart` took apart; raises `ValueError` for anything else."""
    try:
        content = recorddict_from_proto(ProtoRecordDict.FromString(parts[0]))
    except (DecodeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(f"not a message's content: {error}") from error
    arrays = [(record, key) for record in content.array_records.values() for key in record]
    if len(arrays) != len(parts) - 1:
        raise ValueError(f"{len(parts) - 1} arrays came, {len(arrays)} are announced")
    for (record, key), data in zip(arrays, parts[1:], strict=True):
        record[key] = _with(record[key], data)
    return content


def pieces(parts: Sequence[bytes]) -> Iterator[memoryview]:
    """Yield all parts, at most `PIECE` bytes at a time; no piece spans two parts."""
    for part in parts:
        view = memoryview(part)
        for start in range(0, len(view), PIECE):
            yield view[start : start + PIECE]


class Assembly:
    """Parts of announced sizes that arrive in pieces; memory is taken as bytes arrive."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """Raise `ValueError` for sizes that no content has."""
        if not sizes or sum(sizes) > LIMIT:
            raise ValueError(f"{len(sizes)} parts with {sum(sizes)} bytes are announced, {LIMIT} are allowed")
        self._sizes, self._parts = list(sizes), list[bytes]()
        self._open, self._missing = BytesIO(), sizes[0]  # grows in place: a large part is in memory once
        self._close()

    @property
    def complete(self) -> bool:
        """Whether all parts are there."""
        return len(self._parts) == len(self._sizes)

    def add(self, piece: bytes | memoryview) -> None:
        """Take the next piece; raises `ValueError` unless it is as long as `pieces` makes it."""
        if self.complete or len(piece) != min(PIECE, self._missing):  # shorter ones could be very many
            raise ValueError(f"a piece of {len(piece)} bytes came, {self._missing} are missing")
        self._open.write(piece)
        self._missing -= len(piece)
        self._close()

    def content(self) -> RecordDict:
        """Return the content; raises `ValueError` if the parts are not one."""
        return put_together(self._parts)

    def _close(self) -> None:
        """Join the parts that are whole; an empty one has no piece."""
        while not self.complete and not self._missing:
            self._parts.append(self._open.getvalue())
            self._open = BytesIO()
            self._missing = 0 if self.complete else self._sizes[len(self._parts)]


def _with(array: Array, data: bytes) -> Array:
    return Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=data)

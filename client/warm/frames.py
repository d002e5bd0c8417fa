"""Frames on a local socket between a node's ClientApp and its worker: a kind, a length, bytes.

Records travel in Flower's own protobuf form and everything else as JSON: nothing that arrives is ever unpickled.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

MAGIC = b"EB01"
HEAD = struct.Struct("!4scQ")
REQUEST, STARTED, OTHER, RECORD, DONE, FAILED = (bytes([letter]) for letter in b"QSORDF")
JSON_LIMIT = 2**20
RECORD_LIMIT = 2**31 - 1  # protobuf's own
PIECE = 2**20


class FrameError(ValueError):
    """What arrived is not a frame that may come here."""


def send(connection: socket.socket, kind: bytes, body: bytes = b"") -> None:
    """Write one frame."""
    connection.sendall(HEAD.pack(MAGIC, kind, len(body)))
    connection.sendall(body)


def receive(connection: socket.socket, *kinds: bytes, limit: int = JSON_LIMIT) -> tuple[bytes, bytes]:
    """Read one frame; raises `FrameError` unless it is of one of these kinds and no longer than `limit` bytes.

    Raises `EOFError` when the other side has gone.
    """
    magic, kind, length = HEAD.unpack(_exactly(connection, HEAD.size))
    if magic != MAGIC or kind not in kinds or length > limit:
        raise FrameError(f"not one of the frames {kinds}: {magic!r} {kind!r}, {length} bytes")
    return kind, _exactly(connection, length)


def send_json(connection: socket.socket, kind: bytes, fields: Mapping[str, Any]) -> None:
    """Write a frame of plain values."""
    send(connection, kind, json.dumps(fields).encode())


def read_json(body: bytes) -> dict[str, Any]:
    """Return a frame's plain values; raises `FrameError` unless it is a JSON object."""
    try:
        fields = json.loads(body)
    except ValueError as error:
        raise FrameError(f"not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise FrameError("not a JSON object")
    return fields


def encode(record: RecordDict) -> bytes:
    """Return the body of a frame with a message's content; of a large model that takes seconds."""
    return bytes(recorddict_to_proto(record).SerializeToString())


def send_record(connection: socket.socket, record: RecordDict) -> None:
    """Write a frame with a message's content."""
    send(connection, RECORD, encode(record))


def receive_record(connection: socket.socket) -> RecordDict:
    """Read a frame with a message's content."""
    _, body = receive(connection, RECORD, limit=RECORD_LIMIT)
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(body))
    except (DecodeError, ValueError, TypeError, KeyError) as error:
        raise FrameError(f"not a record: {error}") from error


def _exactly(connection: socket.socket, length: int) -> bytes:
    """Read this many bytes; memory grows with what has arrived, not with what was announced."""
    pieces, missing = [], length
    while missing:
        piece = connection.recv(min(missing, PIECE))
        if not piece:
            raise EOFError("the other side has gone")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)

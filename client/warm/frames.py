"""Messages on a local socket between a node's ClientApp and its worker, framed by `multiprocessing.connection`.

Records travel in Flower's own protobuf form and everything else as JSON. Nothing that arrives is unpickled: only the
connection's byte messages are used, never its `send` and `recv`.
"""

import json
import socket
import struct
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

STARTED, OTHER, DONE, FAILED = "started", "other", "done", "failed"  # a worker's answers
JSON_LIMIT = 2**20
RECORD_LIMIT = 2**31 - 1  # protobuf's own


class FrameError(ValueError):
    """What arrived is not the message that belongs here."""


class Channel:
    """One end of a connection; closed at the end of its `with` block."""

    def __init__(self, end: socket.socket, patience: float | None = None) -> None:
        """Take over a socket; reading raises `TimeoutError` when nothing comes for `patience` seconds."""
        end.setblocking(True)
        if patience is not None:
            # the connection reads with os.read: the kernel's own limit holds for it, the socket's `settimeout` does not
            limit = struct.pack("ll", int(patience), int(patience % 1 * 1e6))
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self._connection = Connection(end.detach())

    def __enter__(self) -> "Channel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._connection.fileno()

    def send_json(self, fields: Mapping[str, Any]) -> None:
        """Write plain values."""
        self._connection.send_bytes(json.dumps(fields).encode())

    def receive_json(self) -> dict[str, Any]:
        """Read plain values; raises `FrameError` unless they are a JSON object."""
        body = self._receive(JSON_LIMIT)
        try:
            fields = json.loads(body)
        except ValueError as error:
            raise FrameError(f"not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise FrameError("not a JSON object")
        return fields

    def receive_answer(self, *expected: str) -> dict[str, Any]:
        """Read plain values; raises `FrameError` unless their `answer` is an expected one."""
        fields = self.receive_json()
        if fields.get("answer") not in expected:
            raise FrameError(f"answer {fields.get('answer')!r}, expected {' or '.join(expected)}")
        return fields

    def send_record(self, body: bytes) -> None:
        """Write a message's content, as `encode` returns it."""
        self._connection.send_bytes(body)

    def receive_record(self) -> RecordDict:
        """Read a message's content."""
        body = self._receive(RECORD_LIMIT)
        try:
            return recorddict_from_proto(ProtoRecordDict.FromString(body))
        except (DecodeError, ValueError, TypeError, KeyError) as error:
            raise FrameError(f"not a record: {error}") from error

    def _receive(self, limit: int) -> bytes:
        """Read one message of at most `limit` bytes; pages of memory are taken as bytes arrive.

        Raises `FrameError`, `EOFError` when the other side has gone, and `TimeoutError`.
        """
        try:
            return self._connection.recv_bytes(limit)
        except BlockingIOError as error:
            raise TimeoutError("the other side is silent") from error
        except MemoryError as error:  # the address space for all of it is reserved at once
            raise FrameError("the announced message does not fit into memory") from error
        except OSError as error:
            if error.errno is not None:
                raise
            # the connection's own two errors; a message that is too long also ends its reading
            if self._connection.readable:
                raise EOFError("the other side ended within a message") from error
            raise FrameError(f"a message longer than {limit} bytes") from error


def encode(record: RecordDict) -> bytes:
    """Return a message's content as bytes; for a large model that takes seconds."""
    return bytes(recorddict_to_proto(record).SerializeToString())

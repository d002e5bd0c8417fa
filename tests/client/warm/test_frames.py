"""Messages between a ClientApp and its worker: limits, silence, an end in the middle, and no pickles."""

import ast
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.warm import frames
from client.warm.frames import JSON_LIMIT, RECORD_LIMIT, Channel, FrameError, encode

WARM = Path(frames.__file__).parent
Ends = tuple[Channel, socket.socket]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A channel that waits half a second, and the raw socket of its other side."""
    ours, theirs = socket.socketpair()
    with Channel(ours, patience=0.5) as channel, theirs:
        yield channel, theirs


@pytest.mark.parametrize("size", [0, 1, 30_000_000])
def test_values_and_records_arrive_unchanged(size: int) -> None:
    array = np.frombuffer(os.urandom(size), np.uint8)
    record = RecordDict({"config": ConfigRecord({"a": 1.5}), "arrays": ArrayRecord({"x": Array(array)})})
    ours, theirs = socket.socketpair()
    with Channel(ours) as one, Channel(theirs, patience=10.0) as other:
        sender = threading.Thread(
            target=lambda: (one.send_json({"answer": "done", "a": [1]}), one.send_record(encode(record)))
        )
        sender.start()
        assert other.receive_answer("done", "failed") == {"answer": "done", "a": [1]}
        found = other.receive_record()
        sender.join()
    assert found["config"]["a"] == 1.5
    assert np.array_equal(found["arrays"]["x"].numpy(), array)


@pytest.mark.parametrize(
    ("sent", "problem"),
    [
        (struct.pack("!i", JSON_LIMIT + 1), f"longer than {JSON_LIMIT} bytes"),
        (struct.pack("!iQ", -1, 2**64 - 1), f"longer than {JSON_LIMIT} bytes"),
        (b"GET / HTTP/1.1\r\n\r\n", f"longer than {JSON_LIMIT} bytes"),
        (struct.pack("!i", 4) + b"\x80\x04N.", "not JSON"),
        (struct.pack("!i", 0), "not JSON"),
        (struct.pack("!i", 2) + b"[]", "not a JSON object"),
        (struct.pack("!i", 2) + b"{}", "answer None, expected done or failed"),
        (struct.pack("!i", 14) + b'{"answer": []}', r"answer \[\], expected"),
    ],
)
def test_other_values_are_refused(ends: Ends, sent: bytes, problem: str) -> None:
    channel, peer = ends
    peer.sendall(sent)
    with pytest.raises(FrameError, match=problem):
        channel.receive_answer("done", "failed")


def test_record_has_protobufs_limit_and_form(ends: Ends) -> None:
    channel, peer = ends
    peer.sendall(struct.pack("!i", 4) + b"\x80\x04N.")
    with pytest.raises(FrameError, match="not a record"):
        channel.receive_record()
    peer.sendall(struct.pack("!iQ", -1, RECORD_LIMIT + 1))
    with pytest.raises(FrameError, match=f"longer than {RECORD_LIMIT} bytes"):
        channel.receive_record()


def test_announced_bytes_take_no_memory_before_they_arrive(ends: Ends) -> None:
    channel, peer = ends
    peer.sendall(struct.pack("!i", RECORD_LIMIT) + bytes(1000))
    before, grown = psutil.Process().memory_info().rss, []
    probe = threading.Timer(0.25, lambda: grown.append(psutil.Process().memory_info().rss - before))
    probe.start()
    with pytest.raises(TimeoutError):
        channel.receive_record()
    probe.join()
    assert grown[0] < 100e6


def test_message_beyond_the_address_space_is_refused(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def recv_bytes(*arguments: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(frames.Connection, "recv_bytes", recv_bytes)
    with pytest.raises(FrameError, match="does not fit into memory"):
        ends[0].receive_record()


@pytest.mark.parametrize("sent", [b"", b"\0\0", struct.pack("!i", 50), struct.pack("!i", 50) + b"{"])
def test_silence_ends_with_a_timeout(ends: Ends, sent: bytes) -> None:
    channel, peer = ends
    peer.sendall(sent)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="silent"):
        channel.receive_json()
    assert 0.4 < time.monotonic() - started < 10


def test_slow_bytes_are_no_silence(ends: Ends) -> None:
    channel, peer = ends
    received = threading.Thread(target=lambda: values.append(channel.receive_json()))
    values: list[dict[str, int]] = []
    received.start()
    for byte in struct.pack("!i", 7) + b'{"a":1}':
        time.sleep(0.1)  # over a second in all
        peer.sendall(bytes([byte]))
    received.join()
    assert values == [{"a": 1}]


@pytest.mark.parametrize("sent", [b"", b"\0\0", struct.pack("!i", 50), struct.pack("!i", 50) + b"{"])
def test_end_of_the_peer_is_an_eof(ends: Ends, sent: bytes) -> None:
    channel, peer = ends
    peer.sendall(sent)
    peer.close()
    with pytest.raises(EOFError):
        channel.receive_json()


def test_a_peer_killed_while_it_writes_is_an_eof() -> None:
    code = "import os, sys\nos.write(int(sys.argv[1]), bytes(3) + b'\\x09half')\nos.kill(os.getpid(), 9)"
    ours, theirs = socket.socketpair()
    with Channel(ours, patience=60.0) as channel:
        with theirs:
            command = [sys.executable, "-c", code, str(theirs.fileno())]
            done = subprocess.run(command, pass_fds=[theirs.fileno()], check=False)
        assert done.returncode == -signal.SIGKILL
        with pytest.raises((EOFError, ConnectionError)):
            channel.receive_json()


def test_connections_pickling_methods_are_never_called() -> None:
    found = {}
    for file in WARM.glob("*.py"):
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Attribute)]
        found[file.name] = {ast.unparse(node) for node in nodes if node.attr in {"send", "recv"}}
    assert found.pop("flower_shim.py") == {"connection.recv"}  # of a socket
    assert found.pop("pace.py") == {"self._socket.recv"}  # of a socket, too
    assert not any(found.values())
    assert set(found) >= {"frames.py", "worker.py", "dispatch.py"}
    used = [file.name for file in WARM.glob("*.py") if "multiprocessing" in file.read_text()]
    assert used == ["frames.py"]

"""A worker beside a SuperNode, as a real process: what it answers, which clients it serves, when it ends."""

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

from client.warm import dispatch, frames, worker
from client.warm.listener import Address, Listener
from client.warm.rounds import RoundStreams
from client.work import answer
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from strategies.configuration import read_config
from strategies.factory import make_strategy
from tests.support.deployment import wait_until

NODE = {"client-ids": "0,1,2", "depth": 2}
NODE_ID = 7
LONG = 30_000  # epochs: ten minutes of training
PROJECT = Path(__file__).resolve().parents[3]


class Recording(LocalGrid):
    """Records the sent content, by message type."""

    sent: dict[str, RecordDict]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.sent = getattr(self, "sent", {}) | {m.metadata.message_type: m.content for m in messages}
        return super().push_messages(messages)


@pytest.fixture(scope="module")
def runtime() -> Iterator[Path]:
    """The folder of sockets, with a short path; remaining workers end with it."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        # as Flower starts a ClientApp beside a SuperNode
        patch.setattr(sys, "argv", ["/somewhere/flwr-clientapp", "--parent-pid", str(os.getpid())])
        yield Path(folder)
        for process in workers():
            process.kill()


@pytest.fixture(scope="module")
def orders(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RecordDict]:
    """One message's content of each type, as a run of one round sends them."""
    flat = {
        "run.name": "test", "run.strategy": "eefl", "run.rounds": 1, "clients.count": 3, "clients.per-round": 3,
        "clients.device": "cpu", "network.name": "lenet", "network.width": 3, "data.limit": 120,
        "clients.store": str(tmp_path_factory.mktemp("clients")), "server.clients-evaluate-every": 1,
    }  # fmt: skip
    strategy, node = make_strategy(read_config(flat)), dict(NODE)
    from client.app import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pytest"])  # in this process, as in a simulation
        strategy.start(grid := Recording(app, [node]))
    assert set(grid.sent) == {protocol.QUERY, protocol.TRAIN, protocol.EVALUATE, protocol.DELIVER}
    return grid.sent


def workers() -> list[psutil.Process]:
    """The running workers that this process started."""
    return running("client.warm.worker")


def running(word: str) -> list[psutil.Process]:
    """The running processes below this one with this word in their command."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # or it has ended meanwhile
            if word in process.cmdline():
                found.append(process)
    return found


def ask(kind: str, content: RecordDict, node: dict[str, Any] = NODE, idle: float = 600) -> dispatch.Reply:
    reply = dispatch.ask(dispatch.worker_address(NODE_ID), kind, content, node, idle)
    assert reply is not None
    return reply


def with_epochs(content: RecordDict, epochs: int) -> RecordDict:
    """The same order to train for longer."""
    order, payload = protocol.unpack_order(content)
    config = order.config.replace('"train.epochs": 1', f'"train.epochs": {epochs}')
    assert config != order.config
    packed = {name: protocol.pack_state(state) for name, state in payload.states.items()}
    return protocol.pack_order(replace(order, config=config), packed)


def as_bytes(content: RecordDict) -> bytes:
    """A reply as it travels, without its clients' times."""
    if "results" in str(content[protocol.ORDER]):
        reply = protocol.unpack_reply(content)
        reply.results = [replace(result, seconds=0.0) for result in reply.results]
        content = protocol.pack_reply(reply)
    return recorddict_to_proto(content).SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", [protocol.QUERY, protocol.TRAIN, protocol.EVALUATE, protocol.DELIVER])
def test_workers_reply_equals_a_direct_calls_byte_for_byte(orders, kind):
    by_worker, _ = ask(kind, orders[kind])
    direct = as_bytes(answer(kind, orders[kind], NODE))
    assert as_bytes(by_worker) == direct
    assert len(direct) > 100
    assert len(workers()) == 1  # one for all of them


def test_an_error_is_passed_on_and_the_worker_stays(orders):
    before = workers()
    with pytest.raises(dispatch.WorkerError, match="ValueError: the message has no"):
        ask(protocol.TRAIN, RecordDict({"nonsense": ConfigRecord({"a": 1})}))
    with pytest.raises(UserError, match=r"train\.epochs"):
        ask(protocol.TRAIN, with_epochs(orders[protocol.TRAIN], -1))
    assert workers() == before


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("!iQ", -1, 2**40),  # far more than will come
        struct.pack("!i", 4) + b"\x80\x04N.",  # a pickle
        struct.pack("!i", 2) + b"[]",
        struct.pack("!i", 2) + b"{}",
        struct.pack("!i", -2),
        b"",
    ],
)
def test_garbage_is_rejected_and_the_worker_stays(orders, garbage):
    ask(protocol.QUERY, orders[protocol.QUERY])
    before = workers()
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(str(dispatch.worker_address(NODE_ID).path))
        stranger.sendall(garbage)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(60)
        with suppress(ConnectionResetError):  # when it leaves more than it has read
            assert stranger.recv(100) == b""
    ask(protocol.QUERY, orders[protocol.QUERY])
    assert workers() == before


def test_message_is_encoded_before_connecting(orders, monkeypatch):
    written: list[str] = []
    encode, connect = dispatch.encode, Address.connect
    monkeypatch.setattr(dispatch, "encode", lambda record: (written.append("encode"), encode(record))[1])
    monkeypatch.setattr(Address, "connect", lambda *arguments: (written.append("connect"), connect(*arguments))[1])
    ask(protocol.QUERY, orders[protocol.QUERY])
    assert written == ["encode", "connect"]


def test_only_this_user_can_reach_the_socket(orders, runtime):
    ask(protocol.QUERY, orders[protocol.QUERY])
    path = dispatch.worker_address(NODE_ID).path
    assert path.is_relative_to(runtime)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_worker_answers_two_messages_one_after_the_other(orders):
    content = with_epochs(orders[protocol.TRAIN], 12)
    ask(protocol.QUERY, orders[protocol.QUERY])
    before, started = workers(), time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        replies = list(pool.map(lambda _: ask(protocol.TRAIN, content), range(2)))
    assert time.monotonic() - started > sum(seconds for _, seconds in replies)
    assert as_bytes(replies[0][0]) == as_bytes(replies[1][0])
    assert workers() == before


def test_a_killed_worker_fails_its_message_and_is_replaced(orders):
    ask(protocol.QUERY, orders[protocol.QUERY])
    (victim,) = workers()
    spent = sum(victim.cpu_times()[:2])

    def kill() -> None:
        wait_until(lambda: sum(victim.cpu_times()[:2]) > spent + 0.3, 120, "it does not train")
        victim.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(dispatch.WorkerError, match="ended while it worked"):
        ask(protocol.TRAIN, with_epochs(orders[protocol.TRAIN], LONG))
    killer.join()
    reply, _ = ask(protocol.TRAIN, orders[protocol.TRAIN])
    assert as_bytes(reply) == as_bytes(answer(protocol.TRAIN, orders[protocol.TRAIN], NODE))
    (successor,) = workers()
    assert successor.pid != victim.pid


def test_a_worker_that_ends_within_its_reply_fails_the_message() -> None:
    ours, theirs = socket.socketpair()
    done = b'{"answer": "done", "seconds": 1}'
    with theirs, frames.Channel(ours) as channel:
        theirs.sendall(struct.pack("!i", len(done)) + done + struct.pack("!i", 1000) + b"half")
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(dispatch.WorkerError, match="ended while it worked"):
            dispatch._converse(channel, b"")


CLIENT_APP = """
import sys
from pathlib import Path
from flwr.common.serde import recorddict_from_proto
from flwr.proto.recorddict_pb2 import RecordDict
from client.warm import dispatch
content = recorddict_from_proto(RecordDict.FromString(Path(sys.argv[3]).read_bytes()))
dispatch.ask(dispatch.worker_address(7), "train", content, {"client-ids": "0,1,2", "depth": 2}, 600)
"""


def test_a_killed_client_app_ends_its_work(orders, tmp_path):
    ask(protocol.QUERY, orders[protocol.QUERY])
    (process,) = workers()
    spent = sum(process.cpu_times()[:2])
    content = recorddict_to_proto(with_epochs(orders[protocol.TRAIN], LONG)).SerializeToString()
    (tmp_path / "content").write_bytes(content)
    command = [sys.executable, "-c", CLIENT_APP, "--parent-pid", str(os.getpid()), str(tmp_path / "content")]
    with subprocess.Popen(command, cwd=PROJECT) as client_app:
        wait_until(lambda: sum(process.cpu_times()[:2]) > spent + 0.3, 120, "it does not train")
        client_app.send_signal(signal.SIGKILL)
    wait_until(lambda: not workers(), 60, "the worker keeps training")


def resident(address: Address, parent: int, idle: float) -> None:
    """Start a process that listens at an address and accepts every connection."""
    code = (
        "import sys; from client.warm.listener import Listener; "
        f"Listener.inherited(*sys.argv[1:], {parent}, {idle}).serve(id)"
    )
    address.connect([sys.executable, "-c", code], os.environ).close()
    assert running(str(address.path))


def test_listener_leaves_when_idle(runtime):
    address = Address.named("idle")
    resident(address, os.getpid(), idle=2)
    wait_until(lambda: not running(str(address.path)), 60, "it stays")
    assert not address.path.exists()


def test_listener_leaves_when_its_supernode_ends(runtime):
    address = Address.named("left")
    with subprocess.Popen(["sleep", "60"]) as supernode:
        resident(address, supernode.pid, idle=600)
        time.sleep(1.5)  # longer than between two checks
        (process,) = running(str(address.path))
        supernode.kill()
    wait_until(lambda: not running(str(address.path)), 60, "it stays")
    assert not address.path.exists()
    resident(address, os.getpid(), idle=2)
    assert process not in running(str(address.path))


REQUEST = {"kind": "query", "node": {}, "idle": 1}


def bound(address: Address) -> Listener:
    """Return a listener in this process."""
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(address.path))
    return Listener(sock, address, os.getpid(), 600)


def test_listener_leaves_a_folder_that_was_cleaned_away(runtime: Path) -> None:
    folder = runtime / "cleaned"
    folder.mkdir()
    first, second = (bound(Address(folder / name)) for name in ("first", "second"))
    shutil.rmtree(folder)
    first.leave(unless_pending=True)
    folder.mkdir()
    with bound(second.address).sock:  # another process, since the folder was gone
        second.leave()
        assert second.address.path.exists()
    assert first.sock.fileno() == second.sock.fileno() == -1


@pytest.mark.parametrize("change", [{"packages": "/apps/newer"}, {"parent": 1}])
def test_worker_leaves_for_another_version_or_supernode(runtime, change):
    address = Address.named("version")
    listener = bound(address)
    ours, theirs = socket.socketpair()
    with ours, frames.Channel(theirs) as client:
        client.send_json(REQUEST | {"packages": str(dispatch.PACKAGES), "parent": os.getpid(), **change})
        worker.handle(listener, ours, RoundStreams(answer))
        assert client.receive_answer(frames.OTHER) == {"answer": frames.OTHER}
    assert listener.sock.fileno() == -1
    assert not address.path.exists()  # the next client starts a new worker


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("rest", [b"", b"\0\0", struct.pack("!i", 50) + b"half"])
def test_a_silent_client_does_not_keep_others_waiting(runtime, monkeypatch, flower_log, asks, rest):
    monkeypatch.setattr(worker, "PATIENCE", 0.2)
    listener = bound(Address.named("silent"))
    request = json.dumps(REQUEST | {"packages": str(dispatch.PACKAGES), "parent": os.getpid()}).encode()
    ours, theirs = socket.socketpair()
    with ours, theirs, listener.sock:
        theirs.sendall((struct.pack("!i", len(request)) + request if asks else b"") + rest)
        started = time.monotonic()
        worker.handle(listener, ours, RoundStreams(answer))
        assert 0.1 < time.monotonic() - started < 10
        assert "rejected a connection: TimeoutError" in flower_log[-1]
    listener.address.path.unlink()


def test_without_a_private_folder_the_own_process_works(orders, monkeypatch, flower_log):
    before = workers()
    with tempfile.TemporaryDirectory() as short:  # pytest's own folder may be too long for a socket's path
        (Path(short) / f"earlybloom-{os.getuid()}").mkdir(mode=0o755)
        monkeypatch.setenv("XDG_RUNTIME_DIR", short)
        reply = dispatch.respond(protocol.QUERY, orders[protocol.QUERY], NODE_ID, NODE)
    assert as_bytes(reply) == as_bytes(answer(protocol.QUERY, orders[protocol.QUERY], NODE))
    assert "only this user can enter" in flower_log[0]
    assert flower_log[-1].endswith("(own process)")
    assert workers() == before


@pytest.mark.parametrize("node", [{"worker": False}, {"worker": 0}])
def test_worker_false_keeps_no_worker(orders, monkeypatch, node):
    monkeypatch.setattr(dispatch, "ask", lambda *arguments: pytest.fail("asked a worker"))
    dispatch.respond(protocol.QUERY, orders[protocol.QUERY], NODE_ID, NODE | node)


def test_a_simulation_keeps_no_worker(orders, monkeypatch):
    monkeypatch.setattr(dispatch, "ask", lambda *arguments: pytest.fail("asked a worker"))
    monkeypatch.setattr(sys, "argv", ["default_worker.py"])
    dispatch.respond(protocol.QUERY, orders[protocol.QUERY], NODE_ID, NODE)


def test_node_configuration_sets_the_idle_time():
    assert dispatch.idle_seconds({}) == dispatch.idle_seconds({"worker": True}) == 600
    assert dispatch.idle_seconds({"worker": 2.5}) == 150
    assert dispatch.idle_seconds({"worker": -1}) == dispatch.idle_seconds({"worker": False}) == 0
    with pytest.raises(UserError, match="worker='often'"):
        dispatch.idle_seconds({"worker": "often"})


def test_client_app_imports_no_torch():
    code = "import sys, client.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0

"""Rounds by streams: real gRPC between a server's grid and nodes in this process, with links that a test cuts."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from client.app import app
from client.warm import rounds as client_rounds
from client.warm.rounds import RoundStreams
from client.work import answer
from common.config import replace
from common.flower.local_grid import LocalGrid
from common.messages.npy import read_npy
from common.messages.protocol import QUERY, TRAIN
from common.rpc import framing
from common.rpc.channels import connect
from common.rpc.methods import WORK
from common.rpc.rounds import Announcement
from common.rpc.rounds_pb2 import Head, Hello, NodeFrame, ServerFrame
from server.rounds import grid as module
from server.rounds.grid import StreamGrid, serving, streaming
from strategies.configuration import read_config
from strategies.engine.messaging import exchange
from strategies.factory import make_strategy
from tests.support.deployment import wait_until
from tests.support.relay import Relay

CONFIG = read_config({"run.strategy": "eefl"})


def array(content: RecordDict) -> np.ndarray:
    (values,) = content["x"].values()
    return read_npy(values.data)  # Flower's own reading is not safe in threads


def double(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
    if "x" not in content:
        return RecordDict()
    return RecordDict({"x": ArrayRecord([2 * array(content)]), "kind": ConfigRecord({"kind": kind})})


class Nodes(LocalGrid):
    """Flower's grid with nodes whose workers open the streams that messages announce."""

    def __init__(self, number: int, work: client_rounds.Work = double) -> None:
        super().__init__(self.respond, [{"client-id": n} for n in range(number)])
        self.work, self.by_flower = work, list[str]()
        self.workers = {node: Worker(work) for node in self.contexts}
        self.gone = set[int]()

    def respond(self, message: Message, context: Context) -> Message:
        self.by_flower.append(message.metadata.message_type)
        self.workers[context.node_id].streams.open(message.content, context.node_config)
        return Message(self.work(message.metadata.message_type, message.content, context.node_config), reply_to=message)

    def get_node_ids(self) -> list[int]:
        return [node for node in self.contexts if node not in self.gone]


class Worker:
    """A worker's main thread."""

    def __init__(self, work: client_rounds.Work) -> None:
        self.streams = RoundStreams(work)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            self.streams.handle()


@contextmanager
def connected(nodes: Nodes, relay: Relay | None = None, **stream: object) -> Iterator[StreamGrid]:
    """A grid whose streams are open; with a relay they pass it."""
    settings = {f"stream.{key}": value for key, value in stream.items()}
    with serving(nodes, read_config({**CONFIG.flat(), **settings})) as grid:
        if relay is not None:
            relay.target = int(grid.address.rpartition(":")[2])
            grid.address = f"127.0.0.1:{relay.port}"
        list(exchange(grid, [message(node, 0) for node in nodes.contexts], 10))
        wait_until(lambda: all(map(grid.service.connected, nodes.contexts)), 10, "the streams are not open")
        nodes.by_flower.clear()
        yield grid


def message(node: int, value: float, size: int = 3, ttl: float = 60.0) -> Message:
    content = RecordDict({"x": ArrayRecord([np.full(size, value, np.float32)])})
    return Message(content, dst_node_id=node, message_type=TRAIN, ttl=ttl)


def value(reply: Message) -> float:
    return float(array(reply.content)[0])


def pulled(grid: StreamGrid, ids: Iterable[str]) -> list[Message]:
    """Wait for all replies to these messages."""
    ids, replies = list(ids), list[Message]()
    wait_until(lambda: replies.extend(grid.pull_messages(ids)) or len(replies) == len(ids), 30, "replies are missing")
    return replies


def ask(grid: StreamGrid, messages: list[Message], seconds: float = 20.0) -> dict[int, Message]:
    return {reply.metadata.src_node_id: reply for reply in exchange(grid, messages, seconds)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(client_rounds, "PAUSE", 0.05)
    monkeypatch.setattr(module, "LOOK", 0.05)


@pytest.mark.parametrize("tls", [False, True])
def test_only_the_first_message_goes_by_flower(tls):
    nodes = Nodes(3)
    with connected(nodes, tls=tls) as grid:
        for round_ in range(3):
            replies = ask(grid, [message(node, node_ + 10 * round_) for node_, node in enumerate(nodes.contexts)])
            assert [value(replies[node]) for node in nodes.contexts] == [2 * (n + 10 * round_) for n in range(3)]
            assert {reply.content["kind"]["kind"] for reply in replies.values()} == {TRAIN}
    assert nodes.by_flower == []
    wait_until(lambda: not any(w.streams.busy() for w in nodes.workers.values()), 10, "a stream outlives the run")


def test_more_devices_than_the_run_expects_have_streams():
    nodes = Nodes(20)
    with serving(nodes, read_config({"run.strategy": "eefl", "clients.count": 1, "clients.per-round": 1})) as grid:
        list(exchange(grid, [message(node, 0) for node in nodes.contexts], 10))
        wait_until(lambda: all(map(grid.service.connected, nodes.contexts)), 30, "a stream was refused")
        assert sum(thread.name.startswith("rpc") for thread in threading.enumerate()) < 50  # only those in use


def test_same_bits_as_by_flowers_messages():
    flat = {
        "run.strategy": "darkdistill", "run.rounds": 2, "run.name": "same", "clients.count": 2, "clients.per-round": 2,
        "data.limit": 200, "network.name": "lenet", "darkdistill.distill-steps": 1, "darkdistill.server-epochs": 1,
    }  # fmt: skip
    configs = [{"client-id": n, "depth": n + 1} for n in range(2)]
    by_flower, by_stream = make_strategy(read_config(flat)), make_strategy(read_config(flat))
    by_flower.start(LocalGrid(app, configs))
    nodes = Nodes(2, answer)
    for context, config in zip(nodes.contexts.values(), configs, strict=True):
        context.node_config = dict(config)
    with serving(nodes, by_stream.config) as grid:
        by_stream.start(grid)
    assert nodes.by_flower.count(TRAIN) <= 2  # those of the first round, if they were faster than the streams
    assert all(torch.equal(by_flower.model[key], by_stream.model[key]) for key in by_flower.model)


def test_node_that_cannot_open_a_stream_works_by_flower(monkeypatch):
    monkeypatch.setattr(client_rounds, "PATIENCE", 0.2)
    nodes = Nodes(2)
    with serving(nodes, CONFIG) as grid:
        grid.address = "127.0.0.1:1"
        for _ in range(2):
            assert {value(reply) for reply in ask(grid, [message(n, 4) for n in nodes.contexts]).values()} == {8.0}
    assert nodes.by_flower == [TRAIN] * 4


def slow(started: threading.Event, go: threading.Event, done: list[float]) -> client_rounds.Work:
    def work(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
        if "x" in content and (number := float(array(content)[0])):
            started.set()
            go.wait(20)
            done.append(number)
        return double(kind, content, node)

    return work


@pytest.mark.parametrize("closing", [True, False])
def test_order_survives_a_cut_while_it_is_worked_on(closing):
    started, go, done = threading.Event(), threading.Event(), list[float]()
    nodes = Nodes(1, slow(started, go, done))
    (node,) = nodes.contexts
    with Relay(0) as relay, connected(nodes, relay) as grid:
        ids = grid.push_messages([message(node, 5)])
        assert started.wait(10)
        relay.cut(closing=closing)
        go.set()
        time.sleep(0.3)
        assert not list(grid.pull_messages(ids))
        relay.mend()
        wait_until(lambda: grid.service.wait(0.05) or grid.service._replies, 40, "the reply is lost")
        (reply,) = grid.pull_messages(ids)
        assert value(reply) == 10
    assert done == [5.0]  # worked on once
    assert TRAIN not in nodes.by_flower


def test_server_does_not_wake_for_a_reply_that_it_does_not_want_yet():
    nodes = Nodes(2)
    late, other = nodes.contexts
    with connected(nodes) as grid:
        ids = grid.push_messages([message(late, 1)])
        wait_until(lambda: grid.service._replies, 10, "the reply does not come")
        assert not list(grid.pull_messages(["stream-0"]))
        began = time.monotonic()
        grid.wait(0.3)
        assert time.monotonic() - began > 0.25
        began = time.monotonic()
        (reply,) = pulled(grid, grid.push_messages([message(other, 2)]))
        assert (value(reply), [value(reply) for reply in grid.pull_messages(ids)]) == (4, [2])
        grid.push_messages([message(other, 3)])
        grid.wait(10)
        assert time.monotonic() - began < 5


def test_large_model_survives_cuts_on_its_way():
    nodes = Nodes(1)
    (node,) = nodes.contexts
    with Relay(0) as relay, connected(nodes, relay) as grid:
        ids = list(grid.push_messages([message(node, 3, size=30 << 18)]))  # 30 MB each way
        for _ in range(3):
            time.sleep(0.05)
            relay.cut(closing=True)
            relay.mend()
        (reply,) = pulled(grid, ids)
        values = array(reply.content)
        assert values.shape == (30 << 18,)
        assert bool((values == 6).all())


def test_order_of_an_ended_process_fails_and_the_node_comes_back(monkeypatch):
    started, go = threading.Event(), threading.Event()
    nodes = Nodes(1, slow(started, go, []))
    (node,) = nodes.contexts
    with Relay(0) as relay, connected(nodes, relay) as grid:
        ids = grid.push_messages([message(node, 5)])
        assert started.wait(10)
        # the worker's process is killed, and Flower's next message starts another one
        killed, nodes.workers[node] = nodes.workers[node], Worker(double)
        converse = client_rounds.RoundStream._converse

        def of_the_living(self: client_rounds.RoundStream, channel: grpc.Channel) -> bool:
            if self.inbox is killed.streams.inbox:
                raise ValueError("this process was killed")
            return converse(self, channel)

        monkeypatch.setattr(client_rounds.RoundStream, "_converse", of_the_living)
        relay.cut(closing=True)
        relay.mend()
        replies = pulled(grid, ids)
        assert "ended while it worked" in str(replies[0].error.reason)
        assert value(ask(grid, [message(node, 7)])[node]) == 14
    go.set()


def test_process_that_was_replaced_stays_away():
    nodes = Nodes(1)
    (node,) = nodes.contexts
    with connected(nodes) as grid:
        replaced, nodes.workers[node] = nodes.workers[node], Worker(double)
        announced = RecordDict()
        Announcement(grid.address, "", grid.token, node, grid.service.token(node)).attach(announced)
        nodes.workers[node].streams.open(announced, {})
        wait_until(lambda: not replaced.streams.busy(), 10, "the old process keeps its stream")
        assert value(ask(grid, [message(node, 7)])[node]) == 14


def test_gone_node_fails_its_orders():
    started, go = threading.Event(), threading.Event()
    nodes = Nodes(1, slow(started, go, []))
    (node,) = nodes.contexts
    with Relay(0) as relay, connected(nodes, relay) as grid:
        ids = grid.push_messages([message(node, 5)])
        assert started.wait(10)
        relay.cut(closing=True)
        nodes.gone.add(node)
        replies = pulled(grid, ids)
        assert "the node is gone" in str(replies[0].error.reason)
        assert replies[0].metadata.src_node_id == node
        go.set()


def test_exception_of_the_work_is_the_reply():
    def fail(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
        if "x" in content and float(array(content)[0]):
            raise RuntimeError("no space left")
        return double(kind, content, node)

    nodes = Nodes(1, fail)
    (node,) = nodes.contexts
    with connected(nodes) as grid:
        assert ask(grid, [message(node, 1)])[node].error.reason == "RuntimeError: no space left"
        assert value(ask(grid, [message(node, 0)])[node]) == 0


def test_order_whose_time_is_over_is_not_worked_on():
    started, go, done = threading.Event(), threading.Event(), list[float]()
    nodes = Nodes(1, slow(started, go, done))
    (node,) = nodes.contexts
    with connected(nodes) as grid:
        first = list(grid.push_messages([message(node, 1)]))
        assert started.wait(10)
        second = list(grid.push_messages([message(node, 2, ttl=0.1)]))
        time.sleep(0.2)
        go.set()
        replies = pulled(grid, [*first, *second])
        by_id = {reply.metadata.reply_to_message_id: reply for reply in replies}
        assert value(by_id[first[0]]) == 2
        assert "time was over" in str(by_id[second[0]].error.reason)
        assert done == [1.0]


def test_expired_orders_and_replies_are_forgotten():
    nodes = Nodes(1)
    (node,) = nodes.contexts
    with connected(nodes) as grid:
        service = grid.service
        for _ in range(3):
            grid.push_messages([message(node, 1, ttl=0.2)])
        time.sleep(0.3)
        grid.push_messages([message(node, 1)])
        assert len(service._orders) == 1
        wait_until(lambda: len(service._replies) == 1, 5, "no reply")
        assert len(service._expires) == 1


def test_another_nodes_token_is_refused():
    nodes = Nodes(2)
    with connected(nodes) as grid:
        one, other = nodes.contexts
        for token in (grid.service.token(other), "ä"):
            hello = Hello(node=one, token=token, process="p")
            assert _refusal(grid, [NodeFrame(hello=hello)]) == grpc.StatusCode.UNAUTHENTICATED
        assert grid.service.connected(one)


@pytest.mark.parametrize(
    "frames",
    [
        lambda hello: [NodeFrame(head=Head(number=1))],
        lambda hello: [NodeFrame(hello=hello), NodeFrame(head=Head(number=1, sizes=[1 << 40]))],
        lambda hello: [NodeFrame(hello=hello), NodeFrame()],
        lambda hello: [NodeFrame(hello=hello), NodeFrame(head=Head(number=1))],
    ],
)
def test_malformed_frames_end_the_stream(frames: Callable[[Hello], list[NodeFrame]]):
    nodes = Nodes(1)
    with serving(nodes, CONFIG) as grid:
        (node,) = nodes.contexts
        hello = Hello(node=node, token=grid.service.token(node), process="p")
        assert _refusal(grid, frames(hello)) == grpc.StatusCode.INVALID_ARGUMENT
        wait_until(lambda: not grid.service.connected(node), 5, "the stream is still open")


def _refusal(grid: StreamGrid, frames: list[NodeFrame]) -> grpc.StatusCode:
    with connect(grid.address, grid.token) as channel:
        call = channel.stream_stream(WORK)(framing.join(frame) for frame in frames)
        with pytest.raises(grpc.RpcError) as caught:
            for _ in call:
                pass
        return caught.value.code()


def test_stale_announcement_does_not_hold_a_worker(monkeypatch):
    monkeypatch.setattr(client_rounds, "PATIENCE", 0.3)
    nodes = Nodes(1)
    with connected(nodes) as grid:
        stale = RecordDict()
        Announcement(grid.address, "", "an ended run's token", 1, "x").attach(stale)
    worker = Worker(double)
    worker.streams.open(stale, {})
    assert worker.streams.busy()
    wait_until(lambda: not worker.streams.busy(), 10, "the worker waits for an ended run")


@pytest.mark.parametrize("transport", ["stream", "messages"])
def test_simulation_has_no_stream(transport):
    nodes = Nodes(1)
    with streaming(nodes, replace(CONFIG, round={"transport": transport})) as grid:
        assert grid is nodes


def test_flat_memory_for_many_nodes():
    """The model that all nodes get is in memory once."""
    nodes = Nodes(4)
    with connected(nodes) as grid:
        shared = Array(np.ones(8 << 18, np.float32))
        messages = [
            Message(RecordDict({"x": ArrayRecord({"0": shared})}), dst_node_id=n, message_type=QUERY, ttl=60.0)
            for n in nodes.contexts
        ]
        grid.push_messages(messages)
        kept = [order.message.content["x"]["0"] for _, order in grid.service._orders.values()]
        assert all(array.data is shared.data for array in kept)
        wait_until(lambda: len(grid.service._replies) == 4, 20, "replies are missing")


@pytest.mark.parametrize(("megabytes", "at_once"), [(0, 4), (1, 1)])
def test_replies_wait_on_their_nodes_while_the_server_has_no_room(megabytes, at_once):
    nodes = Nodes(4)
    with connected(nodes, memory=megabytes) as grid:
        pending = set(grid.push_messages([message(node, 1, size=1 << 19) for node in nodes.contexts]))  # 2 MB each
        wait_until(lambda: len(grid.service._replies) == at_once, 10, "replies are missing")
        while pending:
            time.sleep(0.3)
            came = list(grid.pull_messages(pending))
            assert len(came) <= at_once
            pending -= {reply.metadata.reply_to_message_id for reply in came}


def test_late_reply_does_not_keep_others_away():
    nodes = Nodes(2)
    late, other = nodes.contexts
    with connected(nodes, memory=1) as grid:
        grid.push_messages([message(late, 1, size=1 << 19)])
        wait_until(lambda: len(grid.service._replies) == 1, 10, "no reply")
        assert value(ask(grid, [message(other, 2, size=1 << 19)])[other]) == 4


def test_half_a_reply_leaves_no_room_taken():
    nodes = Nodes(2)
    one, other = nodes.contexts
    with serving(nodes, read_config({**CONFIG.flat(), "stream.memory": 1})) as grid:
        ask(grid, [message(other, 0)])
        wait_until(lambda: grid.service.connected(other), 10, "the stream is not open")
        with connect(grid.address, grid.token) as channel:
            go = threading.Event()
            hello = Hello(node=one, token=grid.service.token(one), process="p")
            call = channel.stream_stream(WORK)(_half_a_reply(hello, go, number=1))
            wait_until(lambda: grid.service.connected(one), 10, "the stream is not open")
            grid.push_messages([message(one, 1)])
            go.set()
            wait_until(lambda: grid.service._room.used, 10, "the reply does not arrive")
            ids = grid.push_messages([message(other, 2, size=1 << 19)])
            time.sleep(0.5)
            assert not list(grid.pull_messages(ids))
            call.cancel()
            assert value(pulled(grid, ids)[0]) == 4


def test_reply_that_nothing_waits_for_is_not_kept():
    nodes = Nodes(1)
    (node,) = nodes.contexts
    with serving(nodes, CONFIG) as grid, connect(grid.address, grid.token) as channel:
        go = threading.Event()
        go.set()
        hello = Hello(node=node, token=grid.service.token(node), process="p")
        call = channel.stream_stream(WORK)(_half_a_reply(hello, go, number=9))
        answers = [ServerFrame.FromString(next(call)) for _ in range(2)]
        assert [answer.WhichOneof("body") for answer in answers] == ["welcome", "ack"]
        assert answers[1].ack.number == 9
        assert grid.service._room.used == 0
        assert grid.service.connected(node)
        call.cancel()


def _half_a_reply(hello: Hello, go: threading.Event, number: int) -> Iterator[bytes]:
    yield framing.join(NodeFrame(hello=hello))
    go.wait(20)
    yield framing.join(NodeFrame(head=Head(number=number, sizes=[2 << 20])))
    yield framing.join(NodeFrame(), bytes(1 << 20))
    threading.Event().wait()

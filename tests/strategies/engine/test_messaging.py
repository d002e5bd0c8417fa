import gc
import time
import weakref

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode

from common.flower.local_grid import LocalGrid
from strategies.engine import messaging as module
from strategies.engine.messaging import exchange


def echo(message: Message, context) -> Message:
    return Message(RecordDict({"n": ConfigRecord({"id": context.node_config["id"]})}), reply_to=message)


class Late(LocalGrid):
    """Returns one reply at every other pull and none in between; node 2's message is lost."""

    pulls = 0

    def push_messages(self, messages):
        lost = next((n for n, c in self.contexts.items() if c.node_config["id"] == 2), None)
        kept = [m for m in messages if m.metadata.dst_node_id != lost]
        return [*super().push_messages(kept), *(["lost"] if len(kept) < len(list(messages)) else [])]

    def pull_messages(self, message_ids):
        self.pulls += 1
        ready = [m for m in message_ids if m in self.replies]
        return super().pull_messages(ready[:1]) if self.pulls % 2 == 0 else []


def orders(grid: LocalGrid) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in grid.get_node_ids()]


def ids(replies) -> list[int]:
    return [reply.content["n"]["id"] for reply in replies]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_POLL", 0.001)
    monkeypatch.setattr(module, "LAST_POLL", 0.005)


def test_every_reply_is_yielded_once():
    grid = LocalGrid(echo, [{"id": n} for n in range(4)])
    assert sorted(ids(exchange(grid, orders(grid), 5.0))) == [0, 1, 2, 3]
    assert grid.replies == {}


def test_replies_are_yielded_as_they_arrive():
    grid = Late(echo, [{"id": 0}, {"id": 1}])
    replies = exchange(grid, orders(grid), 5.0)
    next(replies)
    assert len(grid.replies) == 1
    assert len(list(replies)) == 1


def test_deadline_ends_wait_for_lost_message():
    grid = Late(echo, [{"id": n} for n in (0, 1, 2)])
    started = time.monotonic()
    assert sorted(ids(exchange(grid, orders(grid), 0.2))) == [0, 1]
    assert 0.2 <= time.monotonic() - started < 1.0


class Gone(LocalGrid):
    """The second node has gone; the grid reports that as the sender, as Flower's does."""

    def pull_messages(self, message_ids):
        gone = list(self.contexts)[1]
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            if reply.metadata.src_node_id == gone:
                reply.__dict__["_content"] = None
                reply.__dict__["_error"] = Error(code=ErrorCode.NODE_UNAVAILABLE, reason="gone")
                reply.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
        return replies


def test_flower_error_for_gone_node_counts_as_its_reply():
    grid = Gone(echo, [{"id": 0}, {"id": 1}])
    nodes = list(grid.get_node_ids())
    there, gone = sorted(exchange(grid, orders(grid), 5.0), key=lambda reply: reply.has_error())
    assert (there.metadata.src_node_id, there.content["n"]["id"]) == (nodes[0], 0)
    assert (gone.metadata.src_node_id, gone.error.reason) == (nodes[1], "gone")


def test_no_messages_return_at_once():
    assert list(exchange(LocalGrid(echo, []), [], 60.0)) == []


def test_large_replies_are_freed_while_others_come(monkeypatch):
    monkeypatch.setattr(module, "GARBAGE", 1000)
    replies: list[weakref.ref[Message]] = []
    living: list[int] = []

    def client(message: Message, context: Context) -> Message:
        array = Array("uint8", (900,), "raw", bytes(900))
        return Message(RecordDict({"model": ArrayRecord({"0": array})}), reply_to=message)

    grid = LocalGrid(client, [{"partition-id": n} for n in range(12)])
    messages = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in grid.get_node_ids()]
    gc.disable()  # else it may run by itself
    try:
        for reply in exchange(grid, messages, 10.0):
            replies.append(weakref.ref(reply.content["model"]))
            living.append(sum(ref() is not None for ref in replies))
    finally:
        gc.enable()
    assert max(living) <= 3


def test_messages_that_flower_takes_none_of_have_no_replies():
    class TooLarge(LocalGrid):
        def push_messages(self, messages):
            return []  # as Flower's grid for a payload that the SuperLink refuses

    grid = TooLarge(echo, [{"id": 0}, {"id": 1}])
    assert list(exchange(grid, orders(grid), 5.0)) == []

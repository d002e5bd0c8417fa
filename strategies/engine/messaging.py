"""Send messages and hand the replies over as they arrive.

Flower's own `send_and_receive` polls every 3 s in deployment and keeps all replies in memory; this one polls promptly
(not at all where the grid can wait) and yields, so that a strategy can fold a reply and let it go.
"""

import gc
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Protocol, runtime_checkable

from flwr.app import Message
from flwr.serverapp import Grid

from common.messages.protocol import message_bytes

GARBAGE = 128 << 20  # bytes of replies between two collections, each of which takes a tenth of a second
FIRST_POLL, LAST_POLL = 0.01, 0.25  # seconds; grows by half from one to the other while nothing arrives


@runtime_checkable
class Waiting(Protocol):
    """A grid to which replies come without a poll."""

    def wait(self, seconds: float) -> None:
        """Return when a reply is there, at the latest after so many seconds."""


class Garbage:
    """Frees replies that are done with: Flower's records refer to themselves, so reference counts never do."""

    def __init__(self) -> None:
        self.waiting = 0  # bytes

    def add(self, size: int) -> None:
        """Count a reply, and collect if many bytes wait."""
        self.waiting += size
        if self.waiting > GARBAGE:
            self.waiting = 0
            gc.collect()


_garbage = Garbage()


def exchange(
    grid: Grid, messages: Sequence[Message], deadline: float, unanswered: dict[str, Message] | None = None
) -> Iterator[Message]:
    """Push the messages and yield each reply once, until all came or `deadline` seconds have passed.

    Messages without a reply are put into `unanswered` at the end, by id; those that Flower did not take have none.
    """
    pushed = zip_longest(grid.push_messages(messages), messages)  # no ids at all if they are too large for Flower
    sent = {message_id: message for message_id, message in pushed if message_id}
    pending = set(sent)
    end = time.monotonic() + deadline
    pause = FIRST_POLL
    while pending and time.monotonic() < end:
        replies = deque(grid.pull_messages(pending))
        came = bool(replies)
        while replies:
            reply = replies.popleft()
            message_id, size = reply.metadata.reply_to_message_id, message_bytes(reply)
            pending.discard(message_id)
            yield _of_its_node(reply, sent[message_id])
            del reply
            _garbage.add(size)
        pause = FIRST_POLL if came else min(pause * 1.5, LAST_POLL)
        if pending:
            (grid.wait if isinstance(grid, Waiting) else time.sleep)(pause)
    if unanswered is not None:
        unanswered |= {message_id: sent[message_id] for message_id in pending}


def _of_its_node(reply: Message, message: Message) -> Message:
    """Return a reply under the name of the node that was asked: for one that has gone, Flower answers in its own."""
    if not reply.has_error() or reply.metadata.src_node_id == message.metadata.dst_node_id:
        return reply
    return Message(reply.error, reply_to=message)

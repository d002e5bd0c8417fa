"""One node's orders as the server keeps them: what waits, what was sent, and what is lost with the node's process."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from queue import SimpleQueue

from flwr.app import Message

from common.rpc.rounds_pb2 import Ack


@dataclass
class Order:
    """An instruction without a reply yet."""

    number: int  # of the node's orders, from 1
    message: Message
    expires: float  # by `time.monotonic`
    sent: bool = False  # at least in part, to the present process


@dataclass(eq=False)
class Stream:
    """An open connection; its queue ends with None."""

    replaced: bool = False  # by one of another process
    outbox: SimpleQueue[Order | Ack | None] = field(default_factory=SimpleQueue)

    def close(self) -> None:
        """End the connection's sending side."""
        self.outbox.put(None)


@dataclass
class Node:
    """A node that has been asked to open a stream."""

    id: int
    orders: dict[int, Order] = field(default_factory=dict)  # by number
    stream: Stream | None = None
    process: str = ""  # that opened the last stream
    lost: float | None = None  # when the last stream broke
    probed: bool = False  # since then
    count: int = 0

    def add(self, message: Message) -> Order:
        """Queue an instruction on the open stream."""
        self.count += 1
        order = Order(self.count, message, time.monotonic() + message.metadata.ttl)
        self.orders[order.number] = order
        assert self.stream is not None
        self.stream.outbox.put(order)
        return order

    def connect(self, stream: Stream, process: str, known: Iterable[int]) -> list[Order]:
        """Take a new stream and send again what its process does not have.

        Returns the orders that were lost with an earlier process: what had been sent to it will not be answered.
        """
        if self.stream is not None:
            self.stream.replaced = process != self.process
            self.stream.close()
        gone = [order for order in self.orders.values() if order.sent] if process != self.process else []
        for order in gone:
            del self.orders[order.number]
        self.stream, self.process, self.lost, self.probed = stream, process, None, False
        for number in sorted(set(self.orders) - set(known)):
            stream.outbox.put(self.orders[number])
        return gone

    def disconnect(self, stream: Stream) -> None:
        """Note the end of a stream, unless a newer one has taken over."""
        if self.stream is stream:
            self.stream, self.lost = None, time.monotonic()

"""The node's end of a run's stream: orders come in, the worker works on them, replies go out.

One of Flower's messages announces the stream. Its thread keeps it open across broken connections until the run ends or
the server stays away. The worker takes orders from the inbox on its main thread, one after another.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import ERROR, INFO, WARNING
from queue import SimpleQueue

import grpc
from flwr.app import RecordDict
from flwr.supercore import log

from common.errors import UserError
from common.rpc import framing
from common.rpc.channels import Limits, connect
from common.rpc.methods import WORK
from common.rpc.records import FRAME, LIMIT, Assembly, pieces, take_apart
from common.rpc.refusals import Refused, read
from common.rpc.rounds import Announcement
from common.rpc.rounds_pb2 import Head, Hello, NodeFrame, ServerFrame

Work = Callable[[str, RecordDict, Mapping[str, object]], RecordDict]  # message type, content, node configuration
PATIENCE = 120.0  # seconds without a connection after which a node gives a stream up
PAUSE = 0.5  # seconds between two attempts
LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL)


@dataclass
class Instruction:
    """An order that has come whole."""

    stream: "RoundStream"
    number: int
    kind: str
    content: RecordDict
    expires: float  # by `time.monotonic`


class Inbox:
    """Orders of all streams, and a descriptor that becomes readable when one comes."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[Instruction] = SimpleQueue()
        self._bell, self._ring = os.pipe()

    def fileno(self) -> int:
        """Return the descriptor, for `select`."""
        return self._bell

    def put(self, order: Instruction) -> None:
        """Add an order."""
        self._orders.put(order)
        os.write(self._ring, b"+")

    def get(self) -> Instruction:
        """Take the next order."""
        os.read(self._bell, 1)
        return self._orders.get()


@dataclass
class RoundStream:
    """One run's stream."""

    announced: Announcement
    node: Mapping[str, object]  # the node's configuration
    inbox: Inbox
    process: str  # the name of this process
    replies: dict[int, RecordDict | str] = field(default_factory=dict)  # by number, until the server has them
    working: set[int] = field(default_factory=set)  # numbers of orders without a reply yet
    outbox: SimpleQueue[int | None] = field(default_factory=SimpleQueue)  # numbers of replies to send
    lock: threading.Lock = field(default_factory=threading.Lock)
    reached: bool = False  # whether the last attempt opened the stream

    def start(self) -> threading.Thread:
        """Open the stream in the background."""
        thread = threading.Thread(target=self._run, name="rounds", daemon=True)
        thread.start()
        return thread

    def reply(self, number: int, answer: RecordDict | str) -> None:
        """Send the reply to an order; a text says why the node could not do the work."""
        with self.lock:
            self.working.discard(number)
            self.replies[number] = answer
            self.outbox.put(number)

    def _run(self) -> None:
        announced, last = self.announced, time.monotonic()
        try:
            authority = announced.certificate.encode() or None
            channel = connect(announced.address, announced.token, authority, Limits(FRAME))
        except UserError as error:
            log(WARNING, "rounds go by Flower's messages: %s", error)
            return
        with channel:
            while time.monotonic() - last < PATIENCE:
                try:
                    if self._converse(channel):
                        return
                except grpc.RpcError as error:
                    if (code := error.code()) not in LOST:
                        log(WARNING, "the server ended the rounds' stream: %s: %s", code.name, error.details())
                        return
                except (Refused, ValueError) as error:
                    log(WARNING, "the rounds' stream ends, the server sent what cannot be read: %s", error)
                    return
                finally:
                    if self.reached:
                        last = time.monotonic()
                time.sleep(PAUSE)
        log(WARNING, "%s cannot be reached, so rounds go by Flower's messages", announced.address)

    def _converse(self, channel: grpc.Channel) -> bool:
        """Send and receive until the connection ends; returns whether the run has ended."""
        self.reached = False
        with self.lock:
            self.outbox = outbox = SimpleQueue[int | None]()
            known = sorted(self.working | set(self.replies))
            for number in self.replies:
                outbox.put(number)
        hello = Hello(node=self.announced.node, token=self.announced.node_token, process=self.process, orders=known)
        call = channel.stream_stream(WORK)(self._frames(hello, outbox))
        try:
            return self._receive(call)
        finally:
            call.cancel()
            outbox.put(None)

    def _frames(self, hello: Hello, outbox: "SimpleQueue[int | None]") -> Iterator[bytes]:
        yield framing.join(NodeFrame(hello=hello))
        while (number := outbox.get()) is not None:
            with self.lock:
                answer = self.replies.get(number)
            if isinstance(answer, str):
                yield framing.join(NodeFrame(head=Head(number=number, error=answer)))
            elif answer is not None:
                parts = take_apart(answer)
                if (size := sum(map(len, parts))) > LIMIT:
                    error = f"this node's reply has {size} bytes, at most {LIMIT} can be sent: give it fewer clients"
                    yield framing.join(NodeFrame(head=Head(number=number, error=error)))
                    continue
                yield framing.join(NodeFrame(head=Head(number=number, sizes=map(len, parts))))
                for piece in pieces(parts):
                    yield framing.join(NodeFrame(), piece)

    def _receive(self, frames: Iterator[bytes]) -> bool:
        head, assembly = Head(), None
        for raw in frames:
            frame, piece = read(ServerFrame, raw)
            body = frame.WhichOneof("body")
            self.reached = True
            if body == "end":
                return True
            if body == "ack":
                with self.lock:
                    self.replies.pop(frame.ack.number, None)
            elif body == "head":
                head, assembly = frame.head, Assembly(frame.head.sizes)
            elif assembly is not None:
                assembly.add(piece)
            if assembly is not None and assembly.complete:
                order = Instruction(self, head.number, head.kind, assembly.content(), time.monotonic() + head.seconds)
                assembly = None
                with self.lock:
                    self.working.add(order.number)
                self.inbox.put(order)
        return False


class RoundStreams:
    """The streams of a worker, one per run, and the work on their orders: a source for `Listener.serve`."""

    def __init__(self, work: Work) -> None:
        """`work` returns the content of the reply to an order; what it raises becomes the reply."""
        self.inbox, self._work, self._process = Inbox(), work, secrets.token_hex(8)
        self._threads: dict[Announcement, threading.Thread] = {}

    def open(self, content: RecordDict, node: Mapping[str, object]) -> None:
        """Open the stream that a message announces, unless it is open."""
        announced = Announcement.of(content)
        self._threads = {key: thread for key, thread in self._threads.items() if thread.is_alive()}
        if announced is not None and announced not in self._threads:
            log(INFO, "worker %d: opens the rounds' stream to %s", os.getpid(), announced.address)
            self._threads[announced] = RoundStream(announced, node, self.inbox, self._process).start()

    def fileno(self) -> int:
        """Return the descriptor that is readable when an order has come."""
        return self.inbox.fileno()

    def handle(self) -> None:
        """Work on the next order."""
        order = self.inbox.get()
        if time.monotonic() > order.expires:
            order.stream.reply(order.number, "the order's time was over before the node came to it")
            return
        try:
            answer: RecordDict | str = self._work(order.kind, order.content, order.stream.node)
        except Exception as error:
            log(ERROR, "the worker could not finish an order", exc_info=error)
            answer = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        order.stream.reply(order.number, answer)

    def busy(self) -> bool:
        """Return whether a stream is open, or may be again."""
        return any(thread.is_alive() for thread in self._threads.values())

"""The server's end of the nodes' streams: sends orders, collects replies, and keeps both across broken connections."""

import hmac
import itertools
import math
import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from logging import INFO
from threading import Condition, Thread

import grpc
from flwr.app import Error, Message, RecordDict
from flwr.supercore import log

from common.rpc import framing
from common.rpc.methods import ROUNDS, WORK
from common.rpc.records import Assembly, pieces, take_apart
from common.rpc.refusals import Refused, abort, malformed, read
from common.rpc.rounds import node_token
from common.rpc.rounds_pb2 import Ack, End, Head, NodeFrame, ServerFrame, Welcome
from server.rounds.node import Node, Order, Stream
from server.rounds.room import Room

FAILED = 2  # Flower's code for an app that raised
ENDED = "the node's worker process ended while it worked on this message"
UNAVAILABLE = 5  # and for a node that has gone


@dataclass
class Incoming:
    """The reply that a stream brings."""

    head: Head = field(default_factory=Head)
    assembly: Assembly | None = None  # None: it is whole, a failure, or late
    late: bool = False  # nothing waits for it: its pieces are not kept


class RoundsService:
    """All nodes of one run. Its methods may be called from any thread."""

    def __init__(self, room: float = math.inf) -> None:
        """`room`: bytes of replies that the server may hold."""
        self._room = Room(room)
        self._secret = secrets.token_bytes(32)
        self._changed = Condition()
        self._nodes: dict[int, Node] = {}
        self._orders: dict[str, tuple[Node, Order]] = {}  # by message id
        self._replies: dict[str, Message] = {}  # by id of the instruction
        self._expires: dict[str, float] = {}  # of replies, by the same id
        self._ids = (f"stream-{number}" for number in itertools.count(1))
        self._news = False  # whether a reply has come since the last look
        self._ended = False

    def register(self, server: grpc.Server) -> None:
        """Add the service to a server."""
        work = grpc.stream_stream_rpc_method_handler(self._work)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(ROUNDS, {WORK.rpartition("/")[2]: work})])

    def token(self, node: int) -> str:
        """Return the token of a node that is asked to open a stream, and expect it."""
        with self._changed:
            self._nodes.setdefault(node, Node(node))
        return node_token(self._secret, node)

    def connected(self, node: int) -> bool:
        """Return whether this node's stream is open."""
        with self._changed:
            return (found := self._nodes.get(node)) is not None and found.stream is not None

    def send(self, message: Message) -> str | None:
        """Queue an instruction and return its id, None if its node has no open stream."""
        with self._changed:
            node = self._nodes.get(message.metadata.dst_node_id)
            if node is None or node.stream is None:
                return None
            self._forget_expired()
            message_id = next(self._ids)
            message.metadata.__dict__["_message_id"] = message_id  # Flower has no public setter
            self._orders[message_id] = node, node.add(message)
            return message_id

    def take(self, ids: Collection[str]) -> list[Message]:
        """Return the replies that have come to these instructions, each once."""
        with self._changed:
            self._news = False
            self._room.take()
            return [self._replies.pop(i) for i in ids if i in self._replies]

    def mine(self, message_id: str) -> bool:
        """Return whether an id is of an instruction that went by a stream."""
        return message_id.startswith("stream-")

    def wait(self, seconds: float) -> None:
        """Wait until a reply has come since `take`, at most for so long: others may lie there for later."""
        with self._changed:
            self._changed.wait_for(lambda: self._news, seconds)

    def lost(self) -> list[Node]:
        """Return nodes whose stream is broken and that owe replies."""
        with self._changed:
            return [node for node in self._nodes.values() if node.lost is not None and node.orders]

    def give_up(self, node: Node, reason: str) -> None:
        """Fail all that a node owes."""
        with self._changed:
            for order in list(node.orders.values()):
                self._settle(node, order.number, Error(UNAVAILABLE, reason))

    def end(self) -> None:
        """Close all streams: nothing more is sent."""
        with self._changed:
            self._ended = True
            self._room.close()
            for node in self._nodes.values():
                if node.stream is not None:
                    node.stream.close()

    def _work(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Serve one stream: this thread sends, another one reads."""
        stream = Stream()
        if not context.add_callback(stream.close):
            return
        try:
            node = self._open(next(requests), stream)
        except StopIteration:
            return
        except Refused as refused:
            abort(context, refused)
        refusals: list[Refused] = []
        Thread(target=self._read, args=(node, stream, requests, refusals), daemon=True).start()
        try:
            yield framing.join(ServerFrame(welcome=Welcome()))
            while (item := stream.outbox.get()) is not None:
                yield from self._frames(item)
            if refusals:
                abort(context, refusals[0])
            if stream.replaced:
                abort(context, Refused(grpc.StatusCode.ABORTED, f"another process of node {node.id} took over"))
            if self._ended:
                yield framing.join(ServerFrame(end=End()))
        finally:
            with self._changed:
                node.disconnect(stream)

    def _open(self, raw: bytes, stream: Stream) -> Node:
        frame, _ = read(NodeFrame, raw)
        hello = frame.hello
        if frame.WhichOneof("body") != "hello" or not hello.process:
            raise malformed("the first frame is not a hello")
        with self._changed:
            node = self._nodes.get(hello.node)
            expected = node_token(self._secret, hello.node).encode()
            if node is None or not hmac.compare_digest(hello.token.encode(), expected):
                raise Refused(grpc.StatusCode.UNAUTHENTICATED, f"not the token of node {hello.node}")
            for order in node.connect(stream, hello.process, hello.orders):
                self._finish(node, order, Error(FAILED, ENDED))
            if self._ended:
                stream.close()
        log(INFO, "node %d: rounds go by its stream", node.id)
        return node

    def _frames(self, item: Order | Ack) -> Iterator[bytes]:
        if isinstance(item, Ack):
            yield framing.join(ServerFrame(ack=item))
            return
        item.sent = True
        parts, metadata = take_apart(item.message.content), item.message.metadata
        head = Head(
            number=item.number, kind=metadata.message_type, seconds=max(0.0, item.expires - time.monotonic()),
            sizes=map(len, parts),
        )  # fmt: skip
        yield framing.join(ServerFrame(head=head))
        for piece in pieces(parts):
            yield framing.join(ServerFrame(), piece)

    def _read(self, node: Node, stream: Stream, requests: Iterator[bytes], refusals: list[Refused]) -> None:
        """Read replies until the connection ends; a malformed one ends it."""
        reply = Incoming()
        try:
            for raw in requests:
                frame, piece = read(NodeFrame, raw)
                if frame.WhichOneof("body") == "head":
                    self._begin(node, stream, reply, frame.head)
                else:
                    self._add(stream, reply, piece)
                self._complete(node, stream, reply)
        except Refused as refused:
            refusals.append(refused)
        except ValueError as error:
            refusals.append(malformed(str(error)))
        except grpc.RpcError:
            pass  # the connection has ended
        finally:
            self._room.leave(stream, waits=False)
        stream.close()

    def _begin(self, node: Node, stream: Stream, reply: Incoming, head: Head) -> None:
        self._room.leave(stream, waits=False)  # of a reply that did not come whole
        reply.head, reply.late, reply.assembly = head, False, None
        if head.error:
            self._answer(node, stream, head.number, Error(FAILED, head.error))
        else:
            reply.assembly = Assembly(head.sizes)

    def _add(self, stream: Stream, reply: Incoming, piece: memoryview) -> None:
        if reply.assembly is not None:
            self._room.grow(stream, len(piece))
            reply.assembly.add(piece)
        elif not reply.late:
            raise malformed("a piece without a head")

    def _complete(self, node: Node, stream: Stream, reply: Incoming) -> None:
        """Pass on a reply that is whole, and give up one that nothing waits for any more."""
        if (assembly := reply.assembly) is None:
            return
        number = reply.head.number
        reply.late = number not in node.orders
        if assembly.complete:
            self._answer(node, stream, number, assembly.content())
        elif reply.late:
            self._answer(node, stream, number, Error(FAILED, "late"))
        else:
            return
        reply.assembly = None

    def _answer(self, node: Node, stream: Stream, number: int, answer: RecordDict | Error) -> None:
        with self._changed:
            self._room.leave(stream, waits=self._settle(node, number, answer))
            stream.outbox.put(Ack(number=number))

    def _settle(self, node: Node, number: int, answer: RecordDict | Error) -> bool:
        """Take a reply; one to an order that is not open any more is dropped, as Flower drops it."""
        if (order := node.orders.pop(number, None)) is None:
            return False
        self._finish(node, order, answer)
        return True

    def _finish(self, node: Node, order: Order, answer: RecordDict | Error) -> None:
        message_id = order.message.metadata.message_id
        self._orders.pop(message_id, None)
        self._replies[message_id] = Message(answer, reply_to=order.message)
        self._expires[message_id] = order.expires
        self._news = True
        self._changed.notify_all()

    def _forget_expired(self) -> None:
        """Let go of orders and replies that nothing asks for any more: their messages' lives are over."""
        now = time.monotonic()
        for message_id, (node, order) in list(self._orders.items()):
            if order.expires < now:
                del self._orders[message_id]
                node.orders.pop(order.number, None)
        for message_id in [i for i, expires in self._expires.items() if expires < now or i not in self._replies]:
            del self._expires[message_id]
            self._replies.pop(message_id, None)

"""The server's end of the streams: what arrives is checked and put into the round's inbox, what is due is sent back.

No training happens here. A stream has two threads: one reads and may be held up by a full queue, which holds up the
sender in turn; the other waits for acknowledgements to send. Whatever does not fit what is open right now, or is not
exactly the tensor that its cut demands, is refused before it is queued, with a status that says why.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock, Thread

import grpc
import torch
from torch import Tensor

from common.rpc import framing
from common.rpc.methods import OFFLOAD, TRAIN
from common.rpc.refusals import Refused, abort, malformed, read
from common.rpc.split_pb2 import Ack, Features, Header, OffloadReply, OffloadRequest, TrainMessage, TrainReply, Welcome
from common.rpc.tensors import decode, encode
from strategies.hetero_splitee.inbox import Batch, ClientQueue, Inbox, Ticket

Answer = Callable[[int, int, Tensor], Tensor]  # (client, cut, features (B, ...)) -> logits (B, classes)


@dataclass(frozen=True)
class Expected:
    """What may arrive in a run, whichever round it is."""

    run: str
    shapes: Mapping[int, tuple[int, ...]]  # cut -> shape of one sample's features
    classes: int
    batch_size: int  # samples per message, at most


class SplitService:
    """The servicer of `Split`: `open` a round's inbox, take from it, `close` it.

    Args:
        expected: what the messages must fit.
        answer: the server's model for `Offload`; one call at a time. None: nothing is answered.
        coding: of the gradients that are returned; logits are always fp32.
        offloads: how many `Offload` calls may wait for their turn.
    """

    def __init__(self, expected: Expected, answer: Answer | None = None, coding: str = "fp32", offloads: int = 8):
        self._expected, self._answer, self._coding = expected, answer, coding
        self._inbox: Inbox | None = None
        self._turn, self._offloads = Lock(), BoundedSemaphore(offloads)

    def register(self, server: grpc.Server) -> None:
        """Add the service to a server that has not been started; bytes in, bytes out."""
        service, train = TRAIN.removeprefix("/").split("/")
        methods = {
            train: grpc.stream_stream_rpc_method_handler(self._train),
            OFFLOAD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._offload),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    def open(self, inbox: Inbox) -> None:
        """Accept a round's batches from now on; closes the round before."""
        self.close()
        self._inbox = inbox

    def close(self) -> None:
        """Close the open round; clients that have ended may fetch their last acknowledgements until the next opens."""
        if self._inbox is not None:
            self._inbox.close()

    def _train(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Welcome a client, have its batches read by a thread of their own, and acknowledge them."""
        try:
            header, message, _ = _read_train(next(requests, b""))
            if not message.HasField("hello"):
                raise malformed("the first message must be a hello")
            queue = self._queue(header)
            ticket, index = queue.attach(header.index, message.hello.batches)
            if not context.add_callback(lambda: queue.detach(ticket)):
                return  # already broken
            Thread(target=self._receive, args=(requests, queue, ticket), name="rpc-reader", daemon=True).start()
            yield framing.join(TrainReply(header=_at(header, index), welcome=Welcome(credit=queue.window)))
            index = header.index
            while (answer := queue.answer(ticket, index)) is not None:
                yield self._acknowledgement(header, queue.window, *answer)
                index += 1
        except Refused as refused:
            abort(context, refused)

    def _receive(self, requests: Iterator[bytes], queue: ClientQueue, ticket: Ticket) -> None:
        """Queue what a stream brings until it ends; a mistake ends it."""
        try:
            for raw in requests:
                header, message, data = _read_train(raw)
                if self._queue(header) is not queue:
                    raise malformed("a stream is for one client")
                if message.HasField("batch"):
                    queue.put(ticket, self._batch(header, message, data))
                elif message.HasField("end"):
                    queue.end(ticket, header.index)
                    return
                else:
                    raise malformed("after the hello come batches and an end")
            raise malformed("the stream stopped without an end")
        except Refused as refused:
            queue.detach(ticket, refused)
        except grpc.RpcError:
            queue.detach(ticket)

    def _batch(self, header: Header, message: TrainMessage, data: framing.Data) -> Batch:
        labels = list(message.batch.labels)
        if max(labels, default=0) >= self._expected.classes:
            raise malformed(f"label {max(labels)} came, there are {self._expected.classes} classes")
        features = self._features(header.cut, message.batch.features, data)
        if len(labels) != len(features):
            raise malformed(f"{len(labels)} labels came with {len(features)} samples")
        return Batch(header.client, header.cut, header.index, features, torch.tensor(labels))

    def _features(self, cut: int, features: Features, data: framing.Data) -> Tensor:
        try:
            return decode(features, data, self._expected.shapes[cut], self._expected.batch_size)
        except ValueError as error:
            raise malformed(str(error)) from error

    def _queue(self, header: Header) -> ClientQueue:
        """Return the queue that a message is for; raises `Refused` unless all its header is of the open round."""
        inbox = self._inbox
        if inbox is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "no round is open")
        opened = inbox.opened
        came = (header.run, header.round, header.version)
        if came != (opened.run, opened.round, opened.version):
            open_ = f"{opened.run!r}, round {opened.round}, version {opened.version}"
            reason = f"run {came[0]!r}, round {came[1]}, version {came[2]} came, open is {open_}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)
        if opened.cuts.get(header.client) != header.cut:
            reason = f"round {opened.round} does not expect client {header.client} with cut {header.cut}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)
        return inbox.queues[header.client]

    def _acknowledgement(self, header: Header, window: int, index: int, gradient: Tensor | None) -> bytes:
        if gradient is None:
            return framing.join(TrainReply(header=_at(header, index), ack=Ack(credit=window)))
        features, data = encode(gradient, self._coding)
        return framing.join(TrainReply(header=_at(header, index), ack=Ack(credit=window, gradient=features)), data)

    def _offload(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer features (B, ...) with logits (B, classes); one call at a time, few waiting."""
        try:
            answer = self._answer
            if answer is None:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this server answers no features")
            if not self._offloads.acquire(blocking=False):
                raise Refused(grpc.StatusCode.UNAVAILABLE, "too many calls wait already, try again")
            try:
                request, data = read(OffloadRequest, raw)
                header = request.header
                if header.run != self._expected.run or header.cut not in self._expected.shapes:
                    raise malformed(f"run {header.run!r} with cut {header.cut} is not served here")
                features = self._features(header.cut, request.features, data)
                with self._turn:
                    logits, values = encode(answer(header.client, header.cut, features), "fp32")
                return framing.join(OffloadReply(header=header, logits=logits), values)
            finally:
                self._offloads.release()
        except Refused as refused:
            abort(context, refused)


def _read_train(raw: bytes) -> tuple[Header, TrainMessage, memoryview]:
    message, data = read(TrainMessage, raw)
    return message.header, message, data


def _at(header: Header, index: int) -> Header:
    reply = Header()
    reply.CopyFrom(header)
    reply.index = index
    return reply

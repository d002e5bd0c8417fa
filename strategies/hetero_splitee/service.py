"""The server's end of the streams: it checks messages, puts batches into the round's inbox and sends the replies.

No training happens here. A stream has two threads: one reads and blocks on a full queue, which blocks the sender in
turn; the other waits for acknowledgements to send. A message that does not fit the open round, or a tensor that is not
exactly what its cut needs, is refused before it is queued, with a status and a reason.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from threading import BoundedSemaphore, Lock, Thread
from typing import Any

import grpc
import torch
from torch import Tensor

from common.rpc import framing
from common.rpc.methods import OFFLOAD, TRAIN
from common.rpc.refusals import Refused, abort, malformed, read
from common.rpc.split_pb2 import Ack, Features, Header, OffloadReply, OffloadRequest, TrainMessage, TrainReply, Welcome
from common.rpc.tensors import decode, encode
from common.weights.folding import MAGNITUDE
from strategies.hetero_splitee.inbox import Batch, ClientQueue, Inbox, Ticket

Answer = Callable[[int, int, Tensor], Tensor]  # (client, cut, features (B, ...)) -> logits (B, classes)


@dataclass(frozen=True)
class Expected:
    """The messages that a run accepts, in any round."""

    run: str
    shapes: Mapping[int, tuple[int, ...]]  # cut -> shape of one sample's features
    classes: int
    batch_size: int  # samples per message, at most
    least: int = 1  # samples per message of training


class SplitService:
    """The servicer of `Split`: `open` a round's inbox, take from it, `close` it.

    Args:
        expected: the messages that are accepted.
        answer: the server's model for `Offload`. None: `Offload` calls are refused.
        turn: is held while `answer` computes; None: a lock that nothing else takes.
        coding: of the returned gradients; logits are always fp32.
        offloads: the number of `Offload` calls that may wait.
    """

    def __init__(self, expected: Expected, answer: Answer | None = None, coding: str = "fp32", offloads: int = 8,
                 turn: AbstractContextManager[Any] | None = None) -> None:  # fmt: skip
        self._expected, self._answer, self._coding = expected, answer, coding
        self._inbox: Inbox | None = None
        self._turn, self._offloads = turn or Lock(), BoundedSemaphore(offloads)

    def register(self, server: grpc.Server) -> None:
        """Add the service to a server before it starts; requests and replies are bytes."""
        service, train = TRAIN.removeprefix("/").split("/")
        methods = {
            train: grpc.stream_stream_rpc_method_handler(self._train),
            OFFLOAD.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(self._offload),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    def open(self, inbox: Inbox) -> None:
        """Close the previous round and accept the batches of this one."""
        self.close()
        self._inbox = inbox

    def close(self) -> None:
        """Close the open round; until the next one, clients that have ended may fetch their last acknowledgements."""
        if self._inbox is not None:
            self._inbox.close()

    def _train(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Welcome a client, start a thread that reads its batches, and acknowledge them."""
        try:
            header, message, _ = _read_train(next(requests, b""))
            if not message.HasField("hello"):
                raise malformed("the first message must be a hello")
            queue = self._queue(header)
            ticket, index = queue.attach(header.index)
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
        """Queue a stream's batches until it ends; an invalid message ends it."""
        try:
            for raw in requests:
                header, message, data = _read_train(raw)
                if self._queue(header) is not queue:
                    raise malformed("the message is for another client than the stream")
                if message.HasField("batch"):
                    queue.put(ticket, self._batch(header, message, data))
                elif message.HasField("end"):
                    queue.end(ticket, header.index)
                    return
                else:
                    raise malformed("a message after the hello must be a batch or an end")
            raise malformed("the stream stopped without an end message")
        except Refused as refused:
            queue.detach(ticket, refused)
        except grpc.RpcError:
            queue.detach(ticket)

    def _batch(self, header: Header, message: TrainMessage, data: framing.Data) -> Batch:
        labels = list(message.batch.labels)
        if max(labels, default=0) >= self._expected.classes:
            raise malformed(f"label {max(labels)} is too high for {self._expected.classes} classes")
        features = self._features(header.cut, message.batch.features, data)
        if len(labels) != len(features):
            raise malformed(f"the batch has {len(labels)} labels for {len(features)} samples")
        if len(labels) < self._expected.least:
            raise malformed(f"samples in the batch: {len(labels)}, batch norm takes {self._expected.least} or more")
        return Batch(header.client, header.cut, header.index, features, torch.tensor(labels))

    def _features(self, cut: int, features: Features, data: framing.Data) -> Tensor:
        try:
            found = decode(features, data, self._expected.shapes[cut], self._expected.batch_size)
        except ValueError as error:
            raise malformed(str(error)) from error
        if float(found.abs().max()) >= MAGNITUDE:
            raise malformed(f"a feature is beyond {MAGNITUDE:g}: the device's part has diverged")
        return found

    def _queue(self, header: Header) -> ClientQueue:
        """Return the queue for a message; raises `Refused` unless its whole header fits the open round."""
        inbox = self._inbox
        if inbox is None:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, "no round is open")
        opened = inbox.opened
        if (header.run, header.round, header.version) != (opened.run, opened.round, opened.version):
            received = f"the message is for run {header.run!r}, round {header.round}, version {header.version}"
            current = f"run {opened.run!r}, round {opened.round}, version {opened.version}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, f"{received}, but {current} is open")
        if opened.cuts.get(header.client) != header.cut:
            reason = f"round {opened.round} does not expect client {header.client} with cut {header.cut}"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)
        return inbox.queues[header.client]

    def _acknowledgement(self, header: Header, window: int, index: int, gradient: Tensor | None) -> bytes:
        if gradient is None:
            return framing.join(TrainReply(header=_at(header, index), ack=Ack(credit=window)))
        features, data = _encode(gradient, self._coding)
        return framing.join(TrainReply(header=_at(header, index), ack=Ack(credit=window, gradient=features)), data)

    def _offload(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer features (B, ...) with logits (B, classes); one call at a time, a few more may wait."""
        try:
            answer = self._answer
            if answer is None:
                raise Refused(grpc.StatusCode.UNIMPLEMENTED, "this server does not answer features")
            if not self._offloads.acquire(blocking=False):
                raise Refused(grpc.StatusCode.UNAVAILABLE, "too many calls are waiting, try again later")
            try:
                request, data = read(OffloadRequest, raw)
                header = request.header
                if header.run != self._expected.run or header.cut not in self._expected.shapes:
                    raise malformed(f"run {header.run!r} with cut {header.cut} is not served here")
                features = self._features(header.cut, request.features, data)
                with self._turn:
                    logits, values = _encode(answer(header.client, header.cut, features), "fp32")
                return framing.join(OffloadReply(header=header, logits=logits), values)
            finally:
                self._offloads.release()
        except Refused as refused:
            abort(context, refused)


def _read_train(raw: bytes) -> tuple[Header, TrainMessage, memoryview]:
    message, data = read(TrainMessage, raw)
    return message.header, message, data


def _encode(values: Tensor, coding: str) -> tuple[Features, framing.Data]:
    try:
        return encode(values, coding)
    except ValueError as error:
        # not INTERNAL, which stands for a broken connection and is tried again
        raise Refused(grpc.StatusCode.DATA_LOSS, f"the server's answer cannot be sent as {coding}: {error}") from error


def _at(header: Header, index: int) -> Header:
    reply = Header()
    reply.CopyFrom(header)
    reply.index = index
    return reply

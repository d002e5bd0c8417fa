"""The client's end of the streams: it sends one client's batches of one round, each exactly once.

A batch is kept until the server has acknowledged it. After a broken connection, the next one begins with the first
batch that the server does not have. Every stream has a thread that reads replies and reconnects. The client's own
thread cannot do this: it may be waiting for another client of the node, which the server cannot answer before the batch
that was lost here arrives.
"""

import time
from collections.abc import Callable
from queue import SimpleQueue
from threading import Condition, Event, Thread
from typing import Any, TypeVar

import grpc
import torch
from torch import Tensor

from common.rpc import framing
from common.rpc.methods import OFFLOAD, TRAIN
from common.rpc.split_pb2 import Batch, End, Hello, OffloadReply, OffloadRequest, TrainMessage, TrainReply
from common.rpc.tensors import decode, encode
from strategies.hetero_splitee.origin import Origin

R = TypeVar("R")
Reply = tuple[TrainReply, memoryview]
# Codes of a broken connection, depending on where it broke. Every other code is final.
BROKEN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED)
ATTEMPTS = 10  # to reach the server
PAUSE = 0.1, 3.0  # seconds before the second attempt, and the maximum to which each further one doubles it


class StreamError(RuntimeError):
    """The server refused, could not be reached, or did not answer before the deadline."""


class FeatureStream:
    """One client's stream of one round; a context manager that closes it, with or without `finish`.

    Several streams may share a channel. All methods must be called from one thread, which may advance many streams in
    turn.

    Args:
        channel: from `common.rpc.channels.connect`.
        origin: the sender; part of every message.
        coding: of the features: "fp32", "fp16", "bf16" or "uint8".
        window: batches that may be unacknowledged and are kept for resending; the server may allow fewer.
        deadline: seconds from now for the whole stream.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        origin: Origin,
        *,
        coding: str = "fp32",
        window: int = 2,
        deadline: float = 600.0,
    ) -> None:
        self._method = channel.stream_stream(TRAIN)
        self._origin, self._coding, self._window = origin, coding, window
        self._clock = _Clock(str(origin), deadline)
        self._changed = Condition()  # the lock of all state below, which both threads use
        self._call: Any = None
        self._outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        self._kept: dict[int, bytes] = {}  # sent and not acknowledged, by index
        self._answer: Reply | None = None  # to the last batch that was acknowledged
        self._early: dict[int, Reply] = {}  # to batches that an earlier process of this client sent, not yet this one
        self._sent = 0
        self._welcome = self._ended = self._over = False
        self._failure: Exception | None = None
        self._closed = Event()
        self._thread = Thread(target=self._run, name=f"stream-{origin.client}", daemon=True)

    def __enter__(self) -> "FeatureStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, features: Tensor, labels: Tensor) -> int:
        """Send features (B, ...) with labels (B,); return the batch's index.

        Waits while as many batches as the window allows are unacknowledged. Raises `StreamError`, and `ValueError` if
        the features are not finite.
        """
        if self._ended:
            raise ValueError(f"{self._origin}: the stream has ended")
        described, data = encode(features, self._coding)
        batch = Batch(features=described, labels=labels.tolist())
        raw = framing.join(TrainMessage(header=self._origin.header(self._sent), batch=batch), data)
        self._start()
        with self._changed:
            self._wait(lambda: self._welcome and len(self._kept) < self._window)
            index, self._sent = self._sent, self._sent + 1
            if index in self._early:
                self._answer = self._early.pop(index)
            else:
                self._kept[index] = raw
                self._outgoing.put(raw)
            return index

    def wait_gradient(self, index: int, shape: torch.Size) -> Tensor:
        """Return the gradient for batch `index`, of this shape (B, ...); it must be the last batch sent."""
        with self._changed:
            self._wait(lambda: index not in self._kept)
            assert self._answer is not None
            reply, data = self._answer
        if not reply.ack.HasField("gradient"):
            raise StreamError(f"{self._origin}: the server returns no gradients")
        return decode(reply.ack.gradient, data, tuple(shape[1:]), shape[0])

    def finish(self) -> int:
        """End the stream and wait until the server has taken all batches; return their number."""
        self._start()
        with self._changed:
            self._ended = True
            if self._welcome:
                self._send_end()
            self._wait(lambda: self._over and not self._kept)
            return self._sent

    def close(self) -> None:
        """Close the stream; unacknowledged batches may be lost."""
        with self._changed:
            self._closed.set()
            self._outgoing.put(None)  # ends gRPC's sending thread
            if self._call is not None:
                self._call.cancel()
            self._kept.clear()
        if self._thread.ident is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def _wait(self, condition: Callable[[], bool]) -> None:
        """Wait until the other thread makes the condition true; raises the error that ended that thread."""
        self._changed.wait_for(lambda: condition() or self._over)
        if self._failure is not None:
            raise self._failure
        if not condition():
            missing = len(self._kept)
            raise StreamError(f"{self._origin}: the server closed the stream, {missing} acknowledgements are missing")

    def _run(self) -> None:
        try:
            while True:
                self._clock.persist(self._open, self._closed.wait)
                try:
                    for raw in self._call:
                        self._take(raw)
                    return
                except grpc.RpcError as error:
                    self._outgoing.put(None)
                    self._clock.check(error)
        except Exception as error:  # raised again by the thread that waits
            self._failure = error
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _open(self) -> None:
        """Begin a stream at the batch that the server requests; raises `grpc.RpcError` if it cannot be reached."""
        outgoing: SimpleQueue[bytes | None] = SimpleQueue()
        with self._changed:
            if self._closed.is_set():
                raise StreamError(f"{self._origin}: the stream is closed")
            first = next(iter(self._kept), self._sent)
            hello = TrainMessage(header=self._origin.header(first), hello=Hello())
            outgoing.put(framing.join(hello))
            self._call = self._method(iter(outgoing.get, None), timeout=self._clock.remaining())
        try:
            welcome, _ = _read_reply(next(self._call, b""))
        except grpc.RpcError:
            outgoing.put(None)
            raise
        with self._changed:
            self._outgoing, self._welcome = outgoing, True
            self._window = min(self._window, max(1, welcome.welcome.credit))
            for index, raw in self._kept.items():
                if index >= welcome.header.index:
                    self._outgoing.put(raw)
            if self._ended:
                self._send_end()
            self._changed.notify_all()

    def _send_end(self) -> None:
        self._outgoing.put(framing.join(TrainMessage(header=self._origin.header(self._sent), end=End())))
        self._outgoing.put(None)

    def _take(self, raw: bytes) -> None:
        """Record an acknowledgement and drop its batch."""
        reply, data = _read_reply(raw)
        index = reply.header.index
        with self._changed:
            if self._kept.pop(index, None) is not None:
                self._answer = reply, data
            elif index >= self._sent:
                self._early[index] = reply, data
            self._changed.notify_all()


def offload(
    channel: grpc.Channel,
    origin: Origin,
    features: Tensor,
    classes: int,
    *,
    coding: str = "fp32",
    deadline: float = 60.0,
) -> Tensor:
    """Return the server's logits (B, classes) for features (B, ...).

    Raises `StreamError`, and `ValueError` if the reply is malformed.
    """
    described, data = encode(features, coding)
    request = framing.join(OffloadRequest(header=origin.header(0), features=described), data)
    clock, method = _Clock(str(origin), deadline), channel.unary_unary(OFFLOAD)
    head, data = framing.split(clock.persist(lambda: method(request, timeout=clock.remaining())))
    return decode(OffloadReply.FromString(head).logits, data, (classes,), len(features))


def _read_reply(raw: bytes) -> Reply:
    head, data = framing.split(raw)
    return TrainReply.FromString(head), data


class _Clock:
    """A deadline, and attempts to reach the server until it passes."""

    def __init__(self, name: str, deadline: float) -> None:
        self._name = name
        self._end = time.monotonic() + deadline

    def remaining(self) -> float:
        """Return the seconds until the deadline; raises `StreamError` after it."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise StreamError(f"{self._name}: the deadline has passed")
        return left

    def persist(self, attempt: Callable[[], R], sleep: Callable[[float], object] = time.sleep) -> R:
        """Return the result of `attempt`; while the connection is broken, pause and try again."""
        pause, longest = PAUSE
        for _ in range(ATTEMPTS - 1):
            try:
                return attempt()
            except grpc.RpcError as error:
                self.check(error)
            sleep(min(pause, self.remaining()))
            pause = min(2 * pause, longest)
        try:
            return attempt()
        except grpc.RpcError as error:
            self.check(error)
            failed = f"the server could not be reached in {ATTEMPTS} attempts"
            raise StreamError(f"{self._name}: {failed}: {error.details()}") from error

    def check(self, error: grpc.RpcError) -> None:
        """Raise `StreamError` unless another attempt may succeed."""
        if error.code() not in BROKEN:
            raise StreamError(f"{self._name}: {error.code().name}: {error.details()}") from error

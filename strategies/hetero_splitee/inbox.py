"""The round's queues between the threads that receive batches and the thread that trains on them.

Every client has its own short queue. A batch is accepted once, in order of its index, even if the connection breaks: a
repeated batch is dropped, one that is ahead of its turn is refused. The trainer asks for one particular batch at a
time, so its order does not depend on which client sends faster.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from threading import Condition

import grpc
from torch import Tensor

from common.rpc.refusals import Refused


@dataclass(frozen=True)
class OpenRound:
    """An open round and its clients."""

    run: str
    round: int
    version: int  # of the models that the round started from
    cuts: Mapping[int, int]  # client -> units on the client
    window: int = 2  # batches per client that may wait to be taken
    gradients: bool = False  # True: `reply` answers a batch; False: it is acknowledged when it is taken


@dataclass(frozen=True)
class Batch:
    """One batch of a client; its tensors are on the CPU."""

    client: int
    cut: int
    index: int
    features: Tensor  # (B, ...) float32
    labels: Tensor  # (B,) int64


class Missing(Enum):
    """Why there is no batch."""

    ENDED = "ended"  # the client has ended its round
    LATE = "late"  # it did not arrive in time; from now on the client is refused


class Closed(RuntimeError):
    """The round was closed while the trainer waited."""


class Ticket:
    """The right of one stream to act for its client; it passes to the client's next stream."""

    def __init__(self) -> None:
        self.refusal: Refused | None = None


class ClientQueue:
    """One client's batches of one round. All methods may be called from any thread."""

    def __init__(self, client: int, opened: OpenRound) -> None:
        self.client, self.cut = client, opened.cuts[client]
        self.window, self._gradients = opened.window, opened.gradients
        self.accepted = 0  # distinct batches that have arrived
        self.late = False  # the server goes on without the client
        self._why = ""  # that is, if the client is not the cause
        self._name = f"client {client} in round {opened.round}"
        self._total: int | None = None  # set when the client ends
        self._waiting: deque[Batch] = deque()
        self._taken = 0  # by the trainer
        self._answered = 0  # of the taken ones, those that may be acknowledged
        self._replies: dict[int, Tensor] = {}  # gradients that the client may not have received yet
        self._ticket: Ticket | None = None
        self._closed = False
        self._changed = Condition()

    def attach(self, first: int) -> tuple[Ticket, int]:
        """Open or resume; returns the stream's ticket and the index of the batch to continue with.

        `first` is the first batch for which the client has no acknowledgement. An older stream of the client is
        revoked. Raises `Refused`.
        """
        with self._changed:
            if self.late:
                raise self._late_refusal()
            if self._closed and not self._finished():
                raise self._closed_refusal()
            if first > self._answered:
                reason = f"{self._name}: the server has not acknowledged batch {first - 1}, cannot resume at {first}"
                raise Refused(grpc.StatusCode.OUT_OF_RANGE, reason)
            replaced = f"{self._name}: another stream of this client replaced this one"
            self._detach(self._ticket, Refused(grpc.StatusCode.ABORTED, replaced))
            self._ticket = Ticket()
            return self._ticket, self.accepted

    def detach(self, ticket: Ticket, refusal: Refused | None = None) -> None:
        """Revoke a stream's ticket: the stream is broken, or `refusal` gives another reason."""
        with self._changed:
            self._detach(ticket, refusal or Refused(grpc.StatusCode.CANCELLED, f"{self._name}: the stream broke"))

    def put(self, ticket: Ticket, batch: Batch) -> None:
        """Accept a batch, after waiting while the queue is full; drop one that has arrived before.

        Raises `Refused` if it is not the next one, or the stream's ticket is no longer valid.
        """
        with self._changed:
            if batch.index < self.accepted:
                return
            self._changed.wait_for(lambda: len(self._waiting) < self.window or self._refusal(ticket) is not None)
            self._require(ticket)
            if batch.index > self.accepted or self._total is not None:
                instead = "after the end" if self._total is not None else f"instead of batch {self.accepted}"
                reason = f"{self._name}: batch {batch.index} arrived {instead}"
                raise Refused(grpc.StatusCode.OUT_OF_RANGE, reason)
            self._waiting.append(batch)
            self.accepted += 1
            # at most `window` batches are in flight, so the client has the replies to all earlier ones
            self._replies = {i: g for i, g in self._replies.items() if i >= self.accepted - self.window}
            self._changed.notify_all()

    def end(self, ticket: Ticket, total: int) -> None:
        """Record that the client has sent all its `total` batches; raises `Refused` unless all have arrived."""
        with self._changed:
            self._require(ticket)
            if total != self.accepted:
                reason = f"{self._name}: {self.accepted} of {total} batches have arrived"
                raise Refused(grpc.StatusCode.OUT_OF_RANGE, reason)
            self._total = total
            self._changed.notify_all()

    def answer(self, ticket: Ticket, index: int) -> tuple[int, Tensor | None] | None:
        """Wait until batch `index` may be acknowledged; return it with its gradient, if any, or None after the end.

        Raises `Refused` if the stream's ticket is no longer valid.
        """
        with self._changed:
            while True:
                if ticket.refusal is None and self._answered > index:
                    return index, self._replies.get(index)
                if ticket.refusal is None and self._finished():
                    return None
                self._require(ticket)
                self._changed.wait()

    def take(self, index: int, timeout: float) -> Batch | Missing:
        """Return the batch of this index for training, waiting at most `timeout` seconds for it.

        Batches are taken in order, each once. A client that has not sent it by then is late and is refused from then
        on. Raises `Closed`.
        """
        with self._changed:
            if index != self._taken and not self.late and not self._is_end(index):
                raise ValueError(f"{self._name}: batch {self._taken} is the next to take, not {index}")
            self._changed.wait_for(
                lambda: self._waiting or self._is_end(index) or self.late or self._closed, max(0.0, timeout)
            )
            if self._closed:
                raise Closed(f"{self._name}: the round is closed")
            if self._waiting:
                self._taken += 1
                self._answered = self._answered if self._gradients else self._taken
                self._changed.notify_all()
                return self._waiting.popleft()
            if self._is_end(index):
                return Missing.ENDED
            self.late = True
            self._changed.notify_all()
            return Missing.LATE

    def reply(self, index: int, gradient: Tensor | None) -> None:
        """Acknowledge a taken batch, with the gradient (B, ...) of the loss with respect to its features."""
        with self._changed:
            if not self._gradients or not self._answered == index < self._taken:
                raise ValueError(f"{self._name}: batch {index} is not the next to answer")
            if gradient is not None:
                self._replies[index] = gradient
            self._answered += 1
            self._changed.notify_all()

    def abandon(self, reason: str = "") -> None:
        """Go on without a client that has failed, or for a `reason` of the server's; the first one is kept.

        Batches that have arrived may still be taken.
        """
        with self._changed:
            self._why = self._why if self.late else reason
            self.late = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wake all waiting threads; only a client that has ended may still fetch its last acknowledgements."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()

    def _detach(self, ticket: Ticket | None, refusal: Refused) -> None:
        if ticket is not None and ticket.refusal is None:
            ticket.refusal = refusal
            self._changed.notify_all()

    def _is_end(self, index: int) -> bool:
        return self._total is not None and index >= self._total

    def _finished(self) -> bool:
        return self._total is not None and self._answered >= self._total

    def _refusal(self, ticket: Ticket) -> Refused | None:
        if ticket.refusal is not None:
            return ticket.refusal
        if self.late:
            return self._late_refusal()
        return self._closed_refusal() if self._closed and not self._finished() else None

    def _require(self, ticket: Ticket) -> None:
        refusal = self._refusal(ticket)
        if refusal is not None:
            raise refusal

    def _late_refusal(self) -> Refused:
        if self._why:
            return Refused(grpc.StatusCode.FAILED_PRECONDITION, f"{self._name}: {self._why}")
        reason = f"{self._name} failed or did not send its next batch in time: the server continues without it"
        return Refused(grpc.StatusCode.DEADLINE_EXCEEDED, reason)

    def _closed_refusal(self) -> Refused:
        return Refused(grpc.StatusCode.FAILED_PRECONDITION, f"{self._name}: the round is closed")


class Inbox:
    """All clients' queues of one round."""

    def __init__(self, opened: OpenRound) -> None:
        self.opened = opened
        self.queues = {client: ClientQueue(client, opened) for client in sorted(opened.cuts)}

    def take(self, client: int, index: int, timeout: float) -> Batch | Missing:
        """Return a client's batch, or why there is none; see `ClientQueue.take`."""
        return self.queues[client].take(index, timeout)

    def reply(self, client: int, index: int, gradient: Tensor | None = None) -> None:
        """Answer a taken batch; see `ClientQueue.reply`."""
        self.queues[client].reply(index, gradient)

    def abandon(self, client: int, reason: str = "") -> None:
        """Go on without a client; see `ClientQueue.abandon`."""
        if client in self.queues:
            self.queues[client].abandon(reason)

    def close(self) -> None:
        """End the round: accept no more batches and wake all waiting threads."""
        for queue in self.queues.values():
            queue.close()

"""Where a round's batches wait between the threads that receive them and the one that trains on them.

Every client has a short queue of its own. A batch is accepted once, in order of its index, whatever happens to the
connection: a batch that comes again is dropped, one that comes too early is refused. The trainer asks for exactly the
batch it wants next, so what it sees does not depend on who sends faster.
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
    """A round that may be sent to, and its clients."""

    run: str
    round: int
    version: int  # of the models that the round started from
    cuts: Mapping[int, int]  # client -> units on the client
    window: int = 2  # batches per client that may wait to be taken
    gradients: bool = False  # whether a batch is answered by `reply`, or just acknowledged when it is taken


@dataclass(frozen=True)
class Batch:
    """What one client sent: `features` (B, ...) float32 and `labels` (B,) int64, both on the CPU."""

    client: int
    cut: int
    index: int
    features: Tensor
    labels: Tensor


class Missing(Enum):
    """Why there is no batch."""

    ENDED = "ended"  # the client has said that it has no more
    LATE = "late"  # it did not come in time; from now on the client is refused


class Closed(RuntimeError):
    """The round was closed while the trainer waited."""


class Ticket:
    """One stream's right to speak for its client; the client's next stream takes it over."""

    def __init__(self) -> None:
        self.refusal: Refused | None = None


class ClientQueue:
    """One client's batches of one round. All methods may be called from any thread."""

    def __init__(self, client: int, opened: OpenRound) -> None:
        self.client, self.cut = client, opened.cuts[client]
        self.window, self._gradients = opened.window, opened.gradients
        self.accepted = 0  # batches that have arrived, each once
        self.late = False
        self._name = f"client {client} in round {opened.round}"
        self._announced = 0
        self._total: int | None = None  # known when the client has ended
        self._waiting: deque[Batch] = deque()
        self._taken = 0  # by the trainer
        self._answered = 0  # of those, how many may be acknowledged
        self._replies: dict[int, Tensor] = {}  # gradients that the client might not have yet
        self._ticket: Ticket | None = None
        self._closed = False
        self._changed = Condition()

    @property
    def missing(self) -> int:
        """How many batches the client announced that have not arrived."""
        return max(0, max(self._announced, self._total or 0) - self.accepted)

    def attach(self, first: int, announced: int = 0) -> tuple[Ticket, int]:
        """Open or resume; returns the stream's ticket and the index of the batch to go on with.

        `first` is the first batch that the client has no acknowledgement of. A client that was still connected by
        another stream loses that one. Raises `Refused`.
        """
        with self._changed:
            if self.late:
                raise self._too_late()
            if self._closed and not self._finished():
                raise self._over()
            if first > self._answered:
                raise Refused(
                    grpc.StatusCode.OUT_OF_RANGE, f"{self._name}: batch {first - 1} was never acknowledged here"
                )
            self._announced = max(self._announced, announced)
            self._detach(self._ticket, Refused(grpc.StatusCode.ABORTED, f"{self._name}: another stream took over"))
            self._ticket = Ticket()
            return self._ticket, self.accepted

    def detach(self, ticket: Ticket, refusal: Refused | None = None) -> None:
        """End a stream's right to speak: it is broken, or `refusal` says what it did wrong."""
        with self._changed:
            self._detach(ticket, refusal or Refused(grpc.StatusCode.CANCELLED, f"{self._name}: the stream broke"))

    def put(self, ticket: Ticket, batch: Batch) -> None:
        """Accept a batch, after waiting while the queue is full; one that is here already is dropped.

        Raises `Refused` when it is not the next one, or the stream may speak no more.
        """
        with self._changed:
            if batch.index < self.accepted:
                return
            self._changed.wait_for(lambda: len(self._waiting) < self.window or self._barred(ticket) is not None)
            self._require(ticket)
            if batch.index > self.accepted or self._total is not None:
                raise Refused(
                    grpc.StatusCode.OUT_OF_RANGE,
                    f"{self._name}: batch {batch.index} came, "
                    + ("after the end" if self._total is not None else f"{self.accepted} is the next"),
                )
            self._waiting.append(batch)
            self.accepted += 1
            # in flight are `window` at most, so the client has the replies to all that came before those
            self._replies = {i: g for i, g in self._replies.items() if i >= self.accepted - self.window}
            self._changed.notify_all()

    def end(self, ticket: Ticket, total: int) -> None:
        """Note that the client has no more than `total` batches; raises `Refused` when not all of them are here."""
        with self._changed:
            self._require(ticket)
            if total != self.accepted:
                raise Refused(
                    grpc.StatusCode.OUT_OF_RANGE, f"{self._name}: {self.accepted} of {total} batches have arrived"
                )
            self._total = total
            self._changed.notify_all()

    def answer(self, ticket: Ticket, index: int) -> tuple[int, Tensor | None] | None:
        """Wait until batch `index` may be acknowledged; returns it with its gradient, if any, or None after the end.

        Raises `Refused` when the stream may speak no more.
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
        """Return the batch of this index for training, waiting `timeout` seconds for it at most.

        Batches are taken in order, each once. A client that has not sent it by then is late: it is refused from now
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
        """Acknowledge a batch that was taken, with the gradient (B, ...) of the loss by its features."""
        with self._changed:
            if not self._gradients or not self._answered == index < self._taken:
                raise ValueError(f"{self._name}: batch {index} is not the next to answer")
            if gradient is not None:
                self._replies[index] = gradient
            self._answered += 1
            self._changed.notify_all()

    def abandon(self) -> None:
        """Wait no longer: the client has failed. What has arrived may still be taken."""
        with self._changed:
            self.late = True
            self._changed.notify_all()

    def close(self) -> None:
        """Wake everybody who waits; only a client that has ended may still fetch its last acknowledgements."""
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

    def _barred(self, ticket: Ticket) -> Refused | None:
        if ticket.refusal is not None:
            return ticket.refusal
        if self.late:
            return self._too_late()
        return self._over() if self._closed and not self._finished() else None

    def _require(self, ticket: Ticket) -> None:
        barred = self._barred(ticket)
        if barred is not None:
            raise barred

    def _too_late(self) -> Refused:
        return Refused(
            grpc.StatusCode.DEADLINE_EXCEEDED, f"{self._name} did not come in time: the server goes on without it"
        )

    def _over(self) -> Refused:
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
        """Answer a batch that was taken; see `ClientQueue.reply`."""
        self.queues[client].reply(index, gradient)

    @property
    def accepted(self) -> dict[int, int]:
        """How many batches have arrived, by client."""
        return {client: queue.accepted for client, queue in self.queues.items()}

    @property
    def missing(self) -> dict[int, int]:
        """How many announced batches have not arrived, by client."""
        return {client: queue.missing for client, queue in self.queues.items()}

    @property
    def late(self) -> list[int]:
        """The clients that are skipped."""
        return [client for client, queue in self.queues.items() if queue.late]

    def abandon(self, client: int) -> None:
        """Wait no longer for a client that has failed; see `ClientQueue.abandon`."""
        if client in self.queues:
            self.queues[client].abandon()

    def close(self) -> None:
        """End the round: nothing is accepted any more, and nobody waits."""
        for queue in self.queues.values():
            queue.close()

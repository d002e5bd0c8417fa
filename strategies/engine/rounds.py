"""What a round brought and what it cost, when it counts, and the callbacks' interface."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from flwr.app import Message

from common.messages import protocol
from strategies.method import RoundUpdate

S_contra = TypeVar("S_contra", contravariant=True)


class QuorumError(RuntimeError):
    """Too few clients answered; the run ends as failed, with its checkpoint."""


@dataclass(frozen=True)
class Record:
    """One complete round; its fields are those of a line of `metrics.jsonl`."""

    round: int
    rounds: int
    clients: Mapping[int, int] = field(default_factory=dict)  # part -> clients folded
    failures: Mapping[int, str] = field(default_factory=dict)  # client -> reason
    rejected: Sequence[int] = ()  # of them, clients whose answer came but was unfit
    late: Sequence[int] = ()  # clients of earlier rounds whose answers came now and were folded
    client_metrics: Mapping[str, float] = field(default_factory=dict)  # means weighted by samples
    client_accuracy: Mapping[str, Any] = field(default_factory=dict)  # see `strategies.client_evaluation.summarise`
    accuracy: Mapping[str, Any] = field(default_factory=dict)  # the server's evaluation
    terms: Mapping[str, Any] = field(default_factory=dict)  # what the method logs
    seconds: Mapping[str, float] = field(default_factory=dict)  # by phase
    traffic: Mapping[str, int] = field(default_factory=dict)  # bytes down and up
    device: Mapping[str, Any] = field(default_factory=dict)  # time on the devices, see `strategies.engine.clock`

    def to_event(self) -> dict[str, Any]:
        """Return the record as an event of `metrics.jsonl`."""
        return {"event": "round", **asdict(self)}


class Watcher(Protocol[S_contra]):
    """What the loop calls; see `strategies.callbacks.base.Callback`."""

    def on_start(self, strategy: S_contra) -> None:
        """Before the first round of this start."""
        ...

    def on_left_out(self, strategy: S_contra, name: str, reason: str) -> None:
        """When "client 3" or "node 7" takes no part in the round that runs."""
        ...

    def on_round(self, strategy: S_contra, record: Record) -> None:
        """After a complete round, its evaluation included."""
        ...

    def on_end(self, strategy: S_contra, failure: str) -> None:
        """After the last round, or when the run fails; `failure` is empty when it did not."""
        ...


class Usage:
    """Seconds by phase and bytes by direction, of one round."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.traffic = {"down": 0, "up": 0}
        self._started = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def total(self) -> dict[str, float]:
        """Return the phases' seconds and those of the round so far."""
        return self.seconds | {"round": time.perf_counter() - self._started}

    def count(self, direction: str, message: Message) -> None:
        """Add a message's bytes."""
        self.traffic[direction] += protocol.message_bytes(message)


def check_quorum(round_: int, update: RoundUpdate, sampled: int, quorum: float, missed: int) -> None:
    """Raise `QuorumError` unless this share of the sampled clients, and at least one, answered.

    `missed` of them are too slow by the simulated clock, and would be again in a resumed run.
    """
    # rounded up, but not for what floating point adds to a whole number
    needed = max(1, math.ceil(quorum * sampled - 1e-9))
    if len(update.results) < needed:
        mend = "continue later with run.resume"
        if sampled - missed < needed:
            mend = "raise round.deadline or lower round.quorum in a new run"
        raise QuorumError(
            f"round {round_}: {len(update.results)} of {sampled} clients answered, round.quorum asks for {needed}; "
            f"{mend}; first reason: {next(iter(update.failures.values()), 'none')}"
        )

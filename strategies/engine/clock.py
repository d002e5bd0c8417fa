"""Time on the devices: measured, or simulated from their profiles (`clients.clock`).

A round lasts as long as its slowest client, at most `round.deadline`. By the simulated clock the deadline, the quorum
and `round.staleness` act on simulated seconds: a client that would take longer has not answered in time, and is not
trained at all, or later (`deferred.py`). Everything else is as in a round with a killed device. Real messages then have
`RunConfig.patience`. The server's own work, evaluations and the delivery of models take no device time.

The event of a round in `metrics.jsonl` has under `device`:

    clock     "measured" or "simulated"
    seconds   that the round lasted on the devices
    total     seconds of all rounds so far, those before a resume too
    by_part   part -> clients, and the sums of their seconds: busy (computing and sending), link (of these on the link)
              and idle (from a client's answer to the end of the round)
    energy    joules of these clients, busy and idle; null unless every profile has watts

In simulated time every client that was at work counts, also one that is late from an earlier round or was given up. The
measured clock knows those that answered: their own seconds of training, and for the link what the server waited beyond
these, shared among the clients of a node.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Message

from common.messages.protocol import ClientReport
from common.weights.flat import StateDict
from strategies.engine.deferred import Deferred
from strategies.engine.work import Work, duration, moment
from strategies.method import RoundUpdate, ServerMethod

LATE = 2  # deadlines after which a late answer never counts


class Clock:
    """The measured one."""

    name = "measured"

    def __init__(self, hosted: Callable[[], Mapping[int, Sequence[int]]]) -> None:
        """`hosted` returns node -> clients of the messages that were sent last."""
        self.total, self.missed = 0.0, dict[int, str]()  # missed: client -> why its answer does not count in this round
        self._hosted, self._arrived, self._seconds = hosted, dict[int, float](), 0.0

    def begin(self, round_: int, sampled: Sequence[ClientReport], model: StateDict) -> list[ClientReport]:
        """Return those of a round's clients that are to train now."""
        return list(sampled)

    def watch(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass on the replies to this round, whose messages are sent now."""
        started, self._arrived = time.perf_counter(), {}
        for reply in replies:
            self._arrived[reply.metadata.src_node_id] = time.perf_counter() - started
            yield reply
        self._seconds = time.perf_counter() - started

    def end(self, update: RoundUpdate) -> dict[str, Any]:
        """End a round that brought this; return what its event says."""
        waited, by_part = self._seconds, dict[int, dict[str, float]]()
        for node, elapsed in self._arrived.items():
            results = [update.results[c] for c in self._hosted().get(node, ()) if c in update.results]
            # what a node claims is no more than what the server waited
            spent = {r.client: r.seconds if 0 <= r.seconds <= elapsed else elapsed for r in results}
            link = max(0.0, elapsed - sum(spent.values())) / max(1, len(results))
            for result in results:
                busy = spent[result.client] + link
                _add(by_part, result.part, busy=busy, link=link, idle=max(0.0, waited - busy))
        return self._event(waited, by_part, None)

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values (JSON) that a resumed run needs."""
        return {}, {"total": self.total}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        self.total = values["total"]

    def _event(
        self, seconds: float, by_part: Mapping[int, Mapping[str, float]], energy: float | None
    ) -> dict[str, Any]:
        self.total = moment(self.total + seconds)
        return {
            "clock": self.name, "seconds": moment(seconds), "total": self.total,
            "by_part": {part: by_part[part] for part in sorted(by_part)}, "energy": energy,
        }  # fmt: skip


class SimulatedClock(Clock):
    """Computes every client's seconds before the round, so that it is known who answers in time."""

    name = "simulated"

    def __init__(self, strategy: ServerMethod, late: Deferred) -> None:
        super().__init__(dict)
        self.strategy, self.late = strategy, late
        self.works: list[Work] = []  # of all clients that are at work in this round

    def begin(self, round_: int, sampled: Sequence[ClientReport], model: StateDict) -> list[ClientReport]:
        """Return the clients that answer before the deadline; the others are in `missed`."""
        section, arrays = self.strategy.config.round, self.strategy.client_arrays(sampled)
        patience = section.deadline * (LATE if section.staleness else 1)
        works = []
        for client in sampled:
            seconds, link = duration(self.strategy, round_, client, arrays.get(client.client, {}))
            until = moment(self.total + min(seconds, patience))
            works.append(Work(client, self.strategy.part(client), round_, self.total, seconds, link, until))
        slow = [work for work in works if work.seconds > section.deadline]
        self._seconds = section.deadline if slow else max(work.seconds for work in works)
        self.works = [*self.late.works, *works]
        self.late.begin(round_, moment(self.total + self._seconds), slow, model)
        self.missed = {work.report.client: _too_slow(work, section.deadline) for work in slow}
        for missed in self.missed:
            self.strategy.lost(missed)
        return [work.report for work in works if work.report.client not in self.missed]

    def watch(self, replies: Iterable[Message]) -> Iterator[Message]:
        """Pass on the replies; when they come does not matter."""
        yield from replies

    def end(self, update: RoundUpdate) -> dict[str, Any]:
        """End the round; what clients did in it was known before."""
        start, end = self.total, moment(self.total + self._seconds)
        by_part, energy = dict[int, dict[str, float]](), list[float | None]()
        for work in self.works:
            busy, profile = work.busy(start, end), work.profile
            idle = self._seconds - busy
            _add(by_part, work.part, busy=busy, link=busy * work.link / work.seconds if busy else 0.0, idle=idle)
            if profile.busy_watts is None or profile.idle_watts is None:
                energy.append(None)
            else:
                energy.append(busy * profile.busy_watts + idle * profile.idle_watts)
        self.late.end(end)
        known = [joules for joules in energy if joules is not None]
        return self._event(self._seconds, by_part, moment(sum(known)) if len(known) == len(energy) else None)

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return the time, and what is outstanding."""
        models, works = self.late.state_dict()
        return models, {"total": self.total, "works": works}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        self.total = values["total"]
        self.late.load_state_dict(tensors, values["works"])


def _add(by_part: dict[int, dict[str, float]], part: int, **seconds: float) -> None:
    sums = by_part.setdefault(part, {"clients": 0, "busy": 0.0, "link": 0.0, "idle": 0.0})
    sums["clients"] += 1
    for name, value in seconds.items():
        sums[name] = moment(sums[name] + value)


def _too_slow(work: Work, deadline: float) -> str:
    return f"its device would take {work.seconds:.4g} s, round.deadline is {deadline:g} s"

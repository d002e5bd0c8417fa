"""Answers that come after their round's deadline: dropped, or folded into a later round with less weight.

With `round.staleness` above 0 a client that did not answer in time may do so for as long again. Until then it is not
asked for anything else, so that what it stored with its answer is still what it has when its round is committed late.
Its model then counts in the round that runs, with weight  samples * staleness^(rounds late)  (polynomials of that kind:
Xie et al., FedAsync, arXiv 1903.03934, section 5.2).
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.supercore import log

from common.errors import UserError
from common.messages import protocol
from common.messages.protocol import ClientReport
from common.weights.flat import Layout
from strategies.engine.aggregation import RoundCollector


@dataclass(frozen=True)
class Owed:
    """What a node still owes: the round, its fraction bits, its clients, and until when."""

    round: int
    bits: int
    clients: tuple[ClientReport, ...]
    until: float


class Latecomers:
    """Keeps track of outstanding answers and folds them in when they arrive."""

    def __init__(
        self, staleness: float, layouts: Mapping[int, Layout], part: Callable[[ClientReport], int], *, averages: bool
    ) -> None:
        """`averages`: the method does nothing with a round's models but average them; else late ones have no place.

        Raises `UserError` where late answers are wanted all the same.
        """
        if staleness and not averages:
            raise UserError(
                f"round.staleness is {staleness:g}, but late answers have a place only where models are averaged and "
                "nothing else: with a run.strategy that has no merge step of its own, robust.aggregation mean and "
                "robust.reject 0; set round.staleness to 0, late answers are then dropped"
            )
        self.staleness, self.layouts, self.part = staleness, layouts, part
        self.owed: dict[str, Owed] = {}  # by the id of the message that was not answered
        self.samples = 0  # of all clients that may answer late in the round that runs

    @property
    def clients(self) -> set[int]:
        """Clients that must not be asked: they are still at work."""
        return {client.client for owed in self.owed.values() for client in owed.clients}

    @property
    def lives(self) -> int:
        """For how many deadlines a message lives."""
        return 2 if self.staleness else 1

    def pull(self, grid: Grid) -> Iterator[Message]:
        """Yield the late answers that are there."""
        if self.owed:
            yield from grid.pull_messages(list(self.owed))

    def take(self, message: Message, collector: RoundCollector, round_: int) -> bool:
        """Fold a late answer into this round; return whether it is one."""
        owed = self.owed.pop(message.metadata.reply_to_message_id, None)
        if owed is None:
            return False
        asked = {client.client: self.part(client) for client in owed.clients}
        announced = {client.client: client.num_examples for client in owed.clients}
        late = RoundCollector(self.layouts, owed.bits, asked, announced)
        if self._add(message, late, asked, owed.round):
            self._fold(late, owed.round, collector, round_)
        return True

    def settle(self, collector: RoundCollector, round_: int) -> None:
        """Fold what `take` has left for the end of the round, when all its replies are there."""

    def expect(self, round_: int, bits: int, patience: float, unanswered: Mapping[str, Sequence[ClientReport]]) -> None:
        """Note the answers to a round that are missing, by message; drop those whose time is over."""
        if not self.staleness:
            return
        now = time.monotonic()
        self.owed = {name: owed for name, owed in self.owed.items() if owed.until > now}
        self.owed |= {name: Owed(round_, bits, tuple(cs), now + patience) for name, cs in unanswered.items()}
        self.samples = sum(client.num_examples for owed in self.owed.values() for client in owed.clients)

    def _add(self, message: Message, late: RoundCollector, clients: Collection[int], asked: int) -> bool:
        """Put a node's late answer to round `asked` into the sum of such answers; return whether it was fit."""
        try:
            if message.has_error():
                raise ValueError("its node failed")
            late.add(protocol.unpack_reply(message.content, self.layouts, 0), clients)
        except (ValueError, TypeError, KeyError) as error:
            log(WARNING, "a late answer of round %d is dropped: %s", asked, error)
            return False
        return True

    def _fold(self, late: RoundCollector, asked: int, collector: RoundCollector, round_: int) -> None:
        """Fold the sum of late answers to round `asked` into this round, with less weight."""
        share = self.staleness ** (round_ - asked)
        for part, fold in late.folds.items():
            if fold.clients:
                collector.fold_late(part, fold.rescaled(share, collector.bits))
        for client, result in late.update.results.items():
            collector.update.late[client] = (asked, result)
            log(INFO, "round %d: client %d answered round %d late", round_, client, asked)
        for client, reason in late.update.failures.items():
            log(WARNING, "round %d: client %d answered round %d late: %s", round_, client, asked, reason)

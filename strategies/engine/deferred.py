"""Answers that are late by the simulated clock: what `late.py` is in real time.

With `round.staleness` above 0 a client that misses the deadline may take as long again. Nothing is trained until then:
the client starts from the model of the round in which it was asked, and what it keeps is not touched meanwhile, so its
training is the same whenever it happens. It happens in the round in which its simulated time is over. A checkpoint
therefore holds those models, and no client's answer. An answer that would come after two deadlines is never trained;
its client is busy until then, as a device is that was given up.

All late answers to one round are summed before the sum is folded in with less weight, so that their grouping on nodes
changes no bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from common.messages.protocol import ClientReport
from common.weights.flat import Layout, StateDict
from strategies.engine.aggregation import RoundCollector
from strategies.engine.late import Latecomers
from strategies.engine.messaging import exchange
from strategies.engine.work import Work

Hosted = Mapping[int, Sequence[int]]  # node -> clients that its message is for


class Deferred(Latecomers):
    """Keeps track of clients that work for longer than their round, and trains them when they are done."""

    def __init__(
        self,
        staleness: float,
        layouts: Mapping[int, Layout],
        part: Callable[[ClientReport], int],
        *,
        averages: bool,
        pack: Callable[[int, list[ClientReport], StateDict], tuple[list[Message], Hosted]],
        patience: Callable[[], float],
    ) -> None:
        """Raises what `Latecomers` does.

        Args:
            staleness: weight of an answer per round that it is late.
            layouts: by part.
            part: of a client.
            averages: as `Latecomers` has it.
            pack: round, clients that were asked in it and its model -> their messages, and who hosts them.
            patience: returns the real seconds that these messages may take.
        """
        super().__init__(staleness, layouts, part, averages=averages)
        self.pack, self.patience = pack, patience
        self.works: list[Work] = []  # outstanding
        self.models: dict[int, StateDict] = {}  # by the round that was asked, of works that answer
        self.due: dict[int, list[Work]] = {}  # by the round that was asked, works that are done in this one
        self._hosted: dict[int, Hosted] = {}
        self._round_of: dict[str, int] = {}  # id of a message -> the round that it is about
        self._sums: dict[int, RoundCollector] = {}

    @property
    def clients(self) -> set[int]:
        """Clients that must not be asked: they are still at work."""
        return {work.report.client for work in self.works}

    @property
    def lives(self) -> int:
        """For how many deadlines a message lives: real messages are answered in the round that sends them."""
        return 1

    def begin(self, round_: int, end: float, slow: Sequence[Work], model: StateDict) -> None:
        """Note the clients of a round that miss its end, and which earlier ones are done by then."""
        self.due = {}
        for work in self.works:
            if work.answers and work.until <= end:
                self.due.setdefault(work.round, []).append(work)
        self.samples = sum(work.report.num_examples for works in self.due.values() for work in works)
        if self.staleness:
            self.works += slow
        if any(work.answers and work.round == round_ for work in self.works):
            self.models[round_] = dict(model)

    def pull(self, grid: Grid) -> Iterator[Message]:
        """Let the clients that are done train, and yield their nodes' answers."""
        for asked, works in sorted(self.due.items()):
            messages, self._hosted[asked] = self.pack(asked, [work.report for work in works], self.models[asked])
            for reply in exchange(grid, messages, self.patience()):
                self._round_of[reply.metadata.reply_to_message_id] = asked
                yield reply

    def take(self, message: Message, collector: RoundCollector, round_: int) -> bool:
        """Add a late answer to those of its round; return whether it is one."""
        asked = self._round_of.pop(message.metadata.reply_to_message_id, None)
        if asked is None:
            return False
        if asked not in self._sums:
            parts = {work.report.client: work.part for work in self.due[asked]}
            announced = {work.report.client: work.report.num_examples for work in self.due[asked]}
            self._sums[asked] = RoundCollector(self.layouts, collector.bits, parts, announced)
        self._add(message, self._sums[asked], self._hosted[asked].get(message.metadata.src_node_id, ()), asked)
        return True

    def settle(self, collector: RoundCollector, round_: int) -> None:
        """Fold the late answers of each round."""
        for asked, late in sorted(self._sums.items()):
            self._fold(late, asked, collector, round_)
        self._sums, self._hosted = {}, {}

    def end(self, now: float) -> None:
        """Forget the works that have ended, and models that no work needs."""
        self.works = [work for work in self.works if work.until > now]
        needed = {work.round for work in self.works if work.answers}
        self.models = {round_: model for round_, model in self.models.items() if round_ in needed}

    def expect(self, round_: int, bits: int, patience: float, unanswered: Mapping[str, Sequence[ClientReport]]) -> None:
        """Nothing more is owed: a message without an answer is a node's failure."""

    def state_dict(self) -> tuple[StateDict, list[dict[str, Any]]]:
        """Return the models as `ROUND.KEY`, and the works as JSON takes them."""
        models = {
            f"{round_}.{key}": value.clone()  # a checkpoint's tensors must not share memory with the global model's
            for round_, model in self.models.items()
            for key, value in model.items()
        }
        return models, [asdict(work) for work in self.works]

    def load_state_dict(self, tensors: StateDict, works: Sequence[Mapping[str, Any]]) -> None:
        """Take `state_dict`'s result back."""
        self.works = [Work(**{**work, "report": ClientReport(**work["report"])}) for work in works]
        self.models = {}
        for name, value in tensors.items():
            round_, _, key = name.partition(".")
            self.models.setdefault(int(round_), {})[key] = value

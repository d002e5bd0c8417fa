"""The strategy that every method's server half inherits: Flower's `Strategy`, with the round loop that all share.

What Flower's own loop lacks and this one has: it starts at round k (resume), folds replies as they arrive, so that the
server holds one model per part and never one per client, polls promptly, tolerates failures down to a quorum, and
calls callbacks. The hooks of a method stand in `strategies.method.ServerMethod`.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from logging import INFO, WARNING
from typing import Any, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from common import logs
from common.devices import pick_device, threads
from common.messages import protocol
from common.messages.protocol import ClientReport, Order
from common.networks import EarlyExitNetwork
from common.profiles import read_profiles
from common.sources import digest
from common.weights.flat import FlatModel, StateDict
from common.weights.folding import fraction_bits
from strategies.engine.clock import Clock, SimulatedClock
from strategies.engine.deferred import Deferred
from strategies.engine.dispatch import Dispatcher
from strategies.engine.late import Latecomers
from strategies.engine.messaging import exchange
from strategies.engine.replies import client_scores, collect, problems
from strategies.engine.robust import make_collector, robust_settings
from strategies.engine.roster import Roster, sample
from strategies.engine.rounds import QuorumError, Record, Usage, Watcher, check_quorum
from strategies.engine.states import States
from strategies.method import Method, RoundUpdate, ServerMethod, Setup
from strategies.parts import Spec

CLOCK = "clock."  # prefix of the clock's tensors in a checkpoint, beside the method's own
ServerEvaluation = Callable[[int, ArrayRecord], MetricRecord | None]  # Flower's `evaluate_fn`: round, global model


class EarlyExitStrategy(ServerMethod, Strategy):
    """One global early-exit network, trained by clients of unequal parts."""

    def __init__(self, method: Method, setup: Setup) -> None:
        """`method` is the card of the class's own method. Raises `UserError` for what the method cannot do."""
        config = setup.config
        self.method, self.config, self.evaluator = method, config, setup.evaluator
        self.classes, self.normalizer, self.data = tuple(setup.classes), setup.normalizer, setup.data
        self.device = pick_device(config.server.device)
        self.robust = robust_settings(config, method)
        self.apart = self.robust.active or method.apart(config)
        self.divide(setup.spec)
        averages = type(self).merge is ServerMethod.merge and not self.apart
        self.roster = Roster(
            config.clients.count, word=self.parts.word, offered=self.tiers, leave_out=self.leave_out
        )  # fmt: skip
        self.states = States(config)
        self.dispatcher = Dispatcher(self, self.roster, self.states)
        self.late, self.clock = self._clock(averages=averages)
        self.patience = config.patience  # real seconds that a client may take, in this start
        self.callbacks: list[Watcher[EarlyExitStrategy]] = []
        self.asked: dict[int, ClientReport] = {}
        self.committed: dict[int, int] = {}
        self.trained: set[int] = set()  # clients that took part in a round at least once
        self.round, self.rounds = 0, config.run.rounds  # last complete round, and after which the run ends
        self.usage = Usage()
        self._update, self._terms = RoundUpdate(), dict[str, Any]()  # of the round that runs
        self._client_accuracy, self._device_time = dict[str, Any](), dict[str, Any]()
        self.profiles = read_profiles(config.clients.devices, config.clients.profiles)

    @property
    def name(self) -> str:
        """The method's name."""
        return self.method.name

    def divide(self, spec: Spec) -> None:
        """Make the network of this shape and what follows from it."""
        self.parts = self.method.parts.divide(spec.to_json(), self.config.run.seed)
        self.network = cast(EarlyExitNetwork, self.parts.whole)
        self.spec = spec.without_weights()
        self.tiers = tuple(self.parts.numbers(self.config))
        models = {part: FlatModel(self.parts.take(part)) for part in self.tiers}
        self.layouts = {part: model.layout.only(self._travels) for part, model in models.items()}
        self.uploads = {part: model.upload_layout.only(self._travels) for part, model in models.items()}
        self.model = {k: v.clone() for k, v in self.network.state_dict().items()}

    # --- The loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: ServerEvaluation | None = None,
    ) -> Result:
        """Run the rounds after `self.round` up to `num_rounds` (default: `run.rounds`), as Flower's `start` does.

        `timeout` is what clients may take for each message, in real seconds (default: `RunConfig.patience`); the two
        configurations are not used, the run's own has all keys. Raises `QuorumError` when too few clients answered;
        Flower then ends the run as failed.
        """
        if initial_arrays is not None and len(initial_arrays):
            self.model |= initial_arrays.to_torch_state_dict()
        self.rounds = self.config.run.rounds if num_rounds is None else num_rounds
        self.patience = self.config.patience if timeout is None else timeout
        failure, result = "", Result()
        with self.serving():
            self.summary()
            try:
                for callback in self.callbacks:
                    callback.on_start(self)
                for round_ in range(self.round + 1, self.rounds + 1):
                    with logs.context(round=round_, everywhere=True):
                        record = self._run_round(grid, round_)
                        self._add(record, result, evaluate_fn)
                        for callback in self.callbacks:
                            callback.on_round(self, record)
                self._deliver(grid)
            except BaseException as error:
                failure = f"{type(error).__name__}: {error}"
                raise
            finally:
                self._end(failure)
        result.arrays = self.arrays()
        return result

    def _end(self, failure: str) -> None:
        """End all callbacks, whatever one raises; the first error counts unless the run has failed itself."""
        errors = list[Exception]()
        for callback in self.callbacks:
            try:
                callback.on_end(self, failure)
            except Exception as error:
                log(WARNING, "%s failed at the run's end", type(callback).__name__, exc_info=error)
                errors.append(error)
        if errors and not failure:
            raise errors[0]

    def _add(self, record: Record, result: Result, evaluate_fn: ServerEvaluation | None) -> None:
        """Put a round into Flower's result."""
        result.train_metrics_clientapp[record.round] = MetricRecord({**record.client_metrics})
        if record.client_accuracy:
            result.evaluate_metrics_clientapp[record.round] = _by_exit(record.client_accuracy)
        if evaluate_fn is not None and (metrics := evaluate_fn(record.round, self.arrays())) is not None:
            result.evaluate_metrics_serverapp[record.round] = metrics

    def _run_round(self, grid: Grid, round_: int) -> Record:
        self.usage = Usage()
        messages = self.configure_train(round_, None, None, grid)
        hosted, unanswered = self.dispatcher.hosted, dict[str, Message]()
        replies = exchange(grid, messages, self.patience, unanswered)
        self.aggregate_train(round_, chain(self.clock.watch(replies), self.late.pull(grid)))
        owing = {i: [self.asked[c] for c in hosted[m.metadata.dst_node_id]] for i, m in unanswered.items()}
        self.late.expect(round_, self._bits(), self.patience, owing)
        accuracy: Mapping[str, Any] = {}
        every = self.config.server.evaluate_every
        if self.evaluator and every and (round_ % every == 0 or round_ == self.rounds):
            with self.usage.phase("evaluate"), threads(self.config.server.threads):
                accuracy = self.evaluate(final=round_ == self.rounds)
        self._client_accuracy = {}
        if questions := self.configure_evaluate(round_, None, None, grid):
            with self.usage.phase("client evaluation"):
                self.aggregate_evaluate(round_, exchange(grid, questions, self.patience))
        self.round, update = round_, self._update
        return Record(
            round=round_, rounds=self.rounds, accuracy=accuracy, terms=self._terms,
            client_metrics=update.mean_metrics(), client_accuracy=self._client_accuracy,
            failures=update.failures, rejected=sorted(update.rejected), late=sorted(update.late),
            clients=dict(sorted(Counter(r.part for r in update.results.values()).items())),
            seconds=self.usage.total(), traffic=dict(self.usage.traffic), device=self._device_time,
        )  # fmt: skip

    # --- Flower's four moments of a round, of which the loop above is made

    def configure_train(
        self, server_round: int, arrays: ArrayRecord | None, config: ConfigRecord | None, grid: Grid
    ) -> list[Message]:
        """Sample clients, deal them to nodes and pack one message per node."""
        self._discover(grid)
        with self.usage.phase("pack"):
            busy = self.late.clients
            able = [c for c in self.roster.available() if self.eligible(c) and c.client not in busy]
            if not able:
                raise QuorumError(f"round {server_round}: no client can take part{self.roster.reasons()}")
            sampled = sample(able, self.config.clients.per_round, self.config.run.seed, server_round)
            self.asked = {c.client: c for c in sampled}
            self.prepare(server_round, sampled)
            training = self.clock.begin(server_round, sampled, self.model)
            return self._messages(self._order(server_round), training, protocol.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, check the quorum, let the method merge them and commit what clients keep."""
        with self.usage.phase("clients"):
            parts = {client: self.part(report) for client, report in self.asked.items()}
            announced = {client: report.num_examples for client, report in self.asked.items()}
            collector = make_collector(
                self.robust, self.uploads, self._bits(), parts, announced, self.part_state,
                apart=self.method.apart(self.config),
            )  # fmt: skip
            for client, reason in self.clock.missed.items():
                collector.fail(client, reason)
            update = collect(
                self, server_round, replies, collector, self.dispatcher.hosted,
                roster=self.roster, late=self.late, usage=self.usage, states=self.states,
            )  # fmt: skip
            self._device_time = self.clock.end(update)
            for client, reason in update.failures.items():
                self.leave_out(f"client {client}", reason)
            check_quorum(server_round, update, len(self.asked), self.config.round.quorum, len(self.clock.missed))
        with self.usage.phase("server"), threads(self.config.server.threads):
            self._update, self._terms = update, dict(self.merge(server_round, update))
        update.states, update.tiers, update.client_arrays = {}, {}, {}  # large, and merged now
        self.committed |= {client: server_round for client, result in update.results.items() if result.kept}
        self.committed |= {client: asked for client, (asked, result) in update.late.items() if result.kept}
        self.trained |= set(update.results) | set(update.late)
        return self.arrays(), MetricRecord({**update.mean_metrics()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord | None, config: ConfigRecord | None, grid: Grid
    ) -> list[Message]:
        """Ask every available client to evaluate, on its own data, the network that it would use."""
        every = self.config.server.clients_evaluate_every
        last = self.method.personal and server_round == self.rounds
        if not last and (not every or server_round % every):
            return []
        able = [c for c in self.roster.available() if c.client not in self.late.clients]
        return self._messages(self._order(server_round), able, protocol.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean over clients of each exit's accuracy."""
        scores = client_scores(
            self, replies, self.dispatcher.hosted, self.trained, roster=self.roster, usage=self.usage
        )
        self._client_accuracy = scores
        return _by_exit(scores) if scores else None

    def leave_out(self, name: str, reason: str) -> None:
        """Say that a client or a node takes no part in the round that runs, and why."""
        log(WARNING, "round %d: %s is left out: %s", self.round + 1, name, reason)
        for callback in self.callbacks:
            callback.on_left_out(self, name, reason)

    def summary(self) -> None:
        """Log what is about to run."""
        log(INFO, "%s, run %r: rounds %d to %d", self.name, self.config.run.name, self.round + 1, self.rounds)
        for line in self.data.lines():
            log(INFO, "%s", line)
        for part in self.tiers:
            log(INFO, "  %s %d: %.3f M parameters, %.2f MMAC", self.parts.word, part,
                self.parts.parameters(part) / 1e6, self.parts.macs(part) / 1e6)  # fmt: skip

    # --- What methods, callbacks and users ask for

    def arrays(self) -> ArrayRecord:
        """Return the global model as Flower's record."""
        return ArrayRecord(self.model)

    def global_network(self) -> EarlyExitNetwork:
        """Return the global network with its current weights."""
        self.network.load_state_dict(self.model)
        return self.network

    def lr(self, round_: int) -> float:
        """Return the clients' learning rate, lr * decay^(round - 1); a query before the first round has round 0."""
        return self.config.train.lr * self.config.train.lr_decay ** max(0, round_ - 1)

    def checkpoint(self) -> tuple[StateDict, StateDict, dict[str, Any]]:
        """Return all that a resumed run needs: the global model, the method's own tensors, and plain values."""
        (tensors, values), (timed, clock) = self.state_dict(), self.clock.state_dict()
        return self.model, tensors | {CLOCK + key: value for key, value in timed.items()}, {
            "round": self.round,
            "committed": self.committed,
            "trained": sorted(self.trained),
            "reports": [asdict(report) for report in self.roster.reports.values()],
            "method": values,
            "clock": clock,
        }  # fmt: skip

    def restore(self, model: StateDict, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Go back to a `checkpoint`."""
        self.model, self.round = model, values["round"]
        self.committed = {int(client): round_ for client, round_ in values["committed"].items()}
        self.trained = set(values["trained"])
        self.roster.reports = {report["client"]: ClientReport(**report) for report in values["reports"]}
        timed = {key: value for key, value in tensors.items() if key.startswith(CLOCK)}
        self.load_state_dict({key: value for key, value in tensors.items() if key not in timed}, values["method"])
        if "clock" in values:  # not in a checkpoint of an older version
            self.clock.load_state_dict({k.removeprefix(CLOCK): v for k, v in timed.items()}, values["clock"])

    # --- Parts of a round

    def _discover(self, grid: Grid) -> None:
        section = self.config.round
        with self.usage.phase("discover"):
            order = replace(self._order(0), profiles={name: p.known() for name, p in self.profiles.items()})
            later = max(1, math.ceil(section.quorum * section.min_nodes))
            self.roster.discover(grid, order, section.min_nodes, section.wait, self.patience, later=later)

    def _clock(self, *, averages: bool) -> tuple[Latecomers, Clock]:
        """Return what keeps late answers, and the clock by which they are late."""
        staleness = self.config.round.staleness
        if self.config.clients.clock == "measured":
            late = Latecomers(staleness, self.uploads, self.part, averages=averages)
            return late, Clock(lambda: self.dispatcher.hosted)
        deferred = Deferred(
            staleness, self.uploads, self.part, averages=averages, pack=self._deferred, patience=lambda: self.patience
        )
        return deferred, SimulatedClock(self, deferred)

    def _deferred(
        self, round_: int, clients: list[ClientReport], model: StateDict
    ) -> tuple[list[Message], Mapping[int, Sequence[int]]]:
        """Return messages for clients that were asked in an earlier round, with its model, and who hosts them."""
        messages = self._messages(self._order(round_), clients, protocol.TRAIN, model)
        return messages, self.dispatcher.hosted

    def _messages(
        self, order: Order, clients: list[ClientReport], kind: str, model: StateDict | None = None
    ) -> list[Message]:
        messages = self.dispatcher.messages(order, clients, kind, self.patience * self.late.lives, model)
        for message in messages:
            self.usage.count("down", message)
        return messages

    def _deliver(self, grid: Grid) -> None:
        """Give every reachable client its final model, for inference without a server."""
        if not self.roster.nodes:  # a run that was killed after its last round has not asked any node yet
            self._discover(grid)
        with self.usage.phase("evaluate"), threads(self.config.server.threads):
            self.finish()
        with self.usage.phase("deliver"):
            order = self._order(self.round)
            policy = self.evaluator.policy if self.evaluator else None
            facts = {
                "mean": self.normalizer.mean,
                "std": self.normalizer.std,
                "policy": policy.to_json() if policy else "",
            }
            order = replace(order, round_values={**order.round_values, **facts})
            messages = self._messages(order, self.roster.available(), protocol.DELIVER)
            for reply in exchange(grid, messages, self.patience):
                for problem in problems(reply):
                    log(WARNING, "node %d did not store a model: %s", reply.metadata.src_node_id, problem)

    def _order(self, round_: int) -> Order:
        return Order(
            run=self.config.run.name, config=self.config.only(self.method.settings).to_json(), round=round_,
            bits=self._bits(), fold=not self.apart, network=self.spec.to_json(), classes=self.classes,
            costs=self.parts.costs.to_json(), round_values={"lr": self.lr(round_), **self.round_values(round_)},
            digest=digest(), token=self.states.token,
        )  # fmt: skip

    def _bits(self) -> int:
        return fraction_bits(sum(c.num_examples for c in self.asked.values()) + self.late.samples)

    def _travels(self, key: str) -> bool:
        return self.method.travels(self.config, key)


def _by_exit(scores: Mapping[str, Any]) -> MetricRecord:
    return MetricRecord({f"exit-{e}": accuracy for e, accuracy in enumerate(scores["exits"], start=1)})

"""The round loop that every method shares, as a Flower `Strategy`.

What Flower's own loop lacks and this one has: it starts at round k (resume), folds replies as they arrive, so that the
server holds one model per depth tier and never one per client, polls promptly, tolerates failures down to a quorum, and
calls callbacks. A method overrides the hooks below `merge` and keeps its state in `state_dict` / `load_state_dict`.
"""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import chain
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from common import logs
from common.config import RunConfig
from common.data.images import Normalizer
from common.devices import pick_device, threads
from common.messages import protocol
from common.messages.protocol import ClientArrays, ClientReport, Order, PackedState, Task
from common.networks import EarlyExitNetwork
from common.storage.model_file import FILE, ModelInfo, save_model
from common.weights.flat import FlatModel, FlatState, Layout, StateDict
from common.weights.folding import fraction_bits
from strategies.callbacks.base import Callback, Record
from strategies.client_evaluation import SCORE_BYTES, check, summarise
from strategies.engine.aggregation import RoundUpdate, average_layers
from strategies.engine.late import Latecomers
from strategies.engine.messaging import exchange
from strategies.engine.robust import make_collector, robust_settings
from strategies.engine.roster import Roster, sample
from strategies.engine.server_evaluation import ServerEvaluator
from strategies.parts import Spec
from strategies.registry import method


class QuorumError(RuntimeError):
    """Too few clients answered; the run ends as failed, with its checkpoint."""


class EarlyExitStrategy(Strategy):
    """One global early-exit network, trained by clients of unequal depth."""

    name: ClassVar[str]
    apart: bool = False  # True: the method needs every client's model, not the folded sum
    personal: ClassVar[bool] = False  # True: clients end with networks of their own and evaluate them
    nested: ClassVar[bool] = True  # a part's state holds the smaller parts' states
    half: ClassVar[bool] = False  # True: the finished model is the server's half of a network

    def __init__(
        self,
        config: RunConfig,
        spec: Spec,
        classes: Sequence[str],
        normalizer: Normalizer,
        evaluator: ServerEvaluator | None = None,
        callbacks: Iterable[Callback] = (),
    ) -> None:
        """`classes` are sent to devices that bring their own folders; without an `evaluator` only clients evaluate."""
        self.config, self.evaluator = config, evaluator
        self.classes, self.normalizer = tuple(classes), normalizer
        self.callbacks = list(callbacks)
        self.device = pick_device(config.server.device)
        found = method(self.name)
        self.parts, self.measure, self._travels = found.parts, found.measure, partial(found.travels, config)
        self.robust = robust_settings(config, found)
        self.apart = self.robust.active
        self._build(spec)
        averages = type(self).merge is EarlyExitStrategy.merge and not self.robust.active
        self.late = Latecomers(config.round.staleness, self.uploads, self.part, averages=averages)
        self.roster = Roster(config.clients.count, word=self.parts.word, offered=self.tiers)
        self.committed: dict[int, int] = {}  # client -> round of its last committed state
        self.trained: set[int] = set()  # clients that took part in a round at least once
        self.round, self.rounds = 0, config.run.rounds  # last complete round, and after which the run ends
        self.seconds: dict[str, float] = {}  # of the current round, by phase
        self.traffic: dict[str, int] = {}
        self._asked: dict[int, ClientReport] = {}

    def _build(self, spec: Spec) -> None:
        """Make the network of this shape and what follows from it."""
        seed, travels = self.config.run.seed, self._travels
        self.network: EarlyExitNetwork = self.parts.whole(spec, seed)
        self.spec = spec.without_weights()
        self.costs = self.parts.costs(self.network)
        self.tiers = tuple(self.parts.numbers(self.costs, self.config))
        prefixes = {d: FlatModel(self.parts.take(self.network, d)) for d in self.tiers}
        self.layouts: dict[int, Layout] = {d: prefix.layout.only(travels) for d, prefix in prefixes.items()}
        self.uploads: dict[int, Layout] = {d: prefix.upload_layout.only(travels) for d, prefix in prefixes.items()}
        self.model: StateDict = {k: v.clone() for k, v in self.network.state_dict().items()}

    # Hooks of a method

    def eligible(self, client: ClientReport) -> bool:
        """Return whether the method trains this client at all."""
        return True

    def part(self, client: ClientReport) -> int:
        """Return the tier to train, never deeper than declared."""
        return client.part

    def prepare(self, round_: int, clients: Sequence[ClientReport]) -> None:
        """Get ready for a round with these clients, before anything is packed."""

    def round_values(self, round_: int) -> Mapping[str, Any]:
        """Return plain values that the method's client half needs this round."""
        return {}

    def client_arrays(self, clients: Sequence[ClientReport]) -> ClientArrays:
        """Return arrays that each of these clients gets for itself, beside the global model."""
        return {}

    def client_array_bytes(self, client: ClientReport) -> int:
        """Return the size of the arrays that this client may send for itself, beside its model, at most."""
        return 0

    def client_values(self, client: ClientReport) -> Mapping[str, Any]:
        """Return plain values that this client gets for itself."""
        return {}

    def shared_states(self, clients: Sequence[ClientReport]) -> Mapping[str, PackedState]:
        """Return states by name that these clients, all of one node, need beside their parts."""
        return {}

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Turn the round's tier averages into the next global model; return what is to be logged.

        The default is plain federated averaging, layer by layer over the tiers that hold a layer.
        """
        weights = {depth: float(tier.weight) for depth, tier in update.tiers.items()}
        self.model |= average_layers({d: t.state for d, t in update.tiers.items()}, weights)
        return {}

    def lost(self, client: int) -> None:
        """Take notice, while others still train, that a client of this round has failed."""

    def exit_macs(self, client: int) -> list[float]:
        """Return the MACs of a sample that leaves at each exit of the network that this client evaluates."""
        return self.parts.exit_macs(self.costs, self.part(self.roster.reports[client]))

    def whole_macs(self) -> list[float]:
        """Return the MACs of a sample that leaves at each exit of the whole network."""
        return self.parts.exit_macs(self.costs, self.tiers[-1])

    def part_state(self, depth: int) -> FlatState:
        """Return what is sent to clients of this depth."""
        return FlatState.of({key: self.model[key] for key in self.layouts[depth].keys})

    def evaluate(self, *, final: bool = False) -> Mapping[str, Any]:
        """Measure the global network on the server's samples; `final` also fits the exit policy."""
        if self.evaluator is None:
            return {}
        return self.evaluator.evaluate(self.global_network(), self.whole_macs() if final else ())

    def finish(self) -> None:
        """Make what goes out with the finished model; a run that was killed after its last round has not yet."""
        if self.evaluator and self.evaluator.policy is None:
            self.evaluate(final=True)

    def final_model(self) -> StateDict:
        """Return the finished model, for the run's folder; nothing if it is with the clients."""
        return {} if self.personal else self.model

    def save_final(self, folder: Path) -> None:
        """Write what the run leaves behind for inference into its folder."""
        if model := self.final_model():
            policy = self.evaluator.policy if self.evaluator else None
            info = ModelInfo(
                self.spec.to_json(), len(self.network.tier_positions), self.classes, self.normalizer.mean,
                self.normalizer.std, policy.to_json() if policy else "", run=self.config.run.name, half=self.half,
            )  # fmt: skip
            save_model(folder / FILE, model, info)

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return tensors and plain values that a resumed run needs beyond the global model."""
        return {}, {}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""

    # The loop

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int | None = None,
        timeout: float | None = None,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Any = None,
    ) -> Result:
        """Run the rounds after `self.round` up to `num_rounds` (default: `run.rounds`).

        Raises `QuorumError` when too few clients answered; Flower then ends the run as failed.
        """
        if initial_arrays is not None and len(initial_arrays):
            self.model |= initial_arrays.to_torch_state_dict()
        self.rounds, failure, result = num_rounds or self.config.run.rounds, "", Result()
        self.summary()
        try:
            for callback in self.callbacks:
                callback.on_start(self)
            for round_ in range(self.round + 1, self.rounds + 1):
                with logs.context(round=round_, everywhere=True):
                    record = self._run_round(grid, round_, timeout)
                    result.train_metrics_clientapp[round_] = MetricRecord({**record.client_metrics})
                    if evaluate_fn is not None and (metrics := evaluate_fn(round_, self.arrays())) is not None:
                        result.evaluate_metrics_serverapp[round_] = metrics
                    for callback in self.callbacks:
                        callback.on_round(self, record)
            self._deliver(grid)
        except BaseException as error:
            failure = f"{type(error).__name__}: {error}"
            raise
        finally:
            for callback in self.callbacks:
                callback.on_end(self, failure)
        result.arrays = self.arrays()
        return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord | None, config: ConfigRecord | None, grid: Grid
    ) -> list[Message]:
        """Sample clients, deal them to nodes and pack one message per node."""
        self._discover(grid)
        with self._phase("pack"):
            busy = self.late.clients
            able = [c for c in self.roster.available() if self.eligible(c) and c.client not in busy]
            if not able:
                raise QuorumError(f"round {server_round}: no client can take part; see the reasons above")
            sampled = sample(able, self.config.clients.per_round, self.config.run.seed, server_round)
            self._asked = {c.client: c for c in sampled}
            self.prepare(server_round, sampled)
            return self._messages(self._order(server_round), sampled, protocol.TRAIN)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold the replies, check the quorum and let the method merge them."""
        update = self._collect(server_round, replies)
        with self._phase("server"), threads(self.config.server.threads):
            self.merge(server_round, update)
        return self.arrays(), MetricRecord({**update.mean_metrics()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord | None, config: ConfigRecord | None, grid: Grid
    ) -> list[Message]:
        """Ask every available client to evaluate, on its own data, the network that it would use."""
        every = self.config.server.clients_evaluate_every
        last = self.personal and server_round == self.rounds
        if not last and (not every or server_round % every):
            return []
        able = [c for c in self.roster.available() if c.client not in self.late.clients]
        return self._messages(self._order(server_round), able, protocol.EVALUATE)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return the mean over clients of each exit's accuracy."""
        scores = self._client_scores(replies)
        return MetricRecord({f"exit-{e}": a for e, a in enumerate(scores["exits"], start=1)}) if scores else None

    def summary(self) -> None:
        """Log what is about to run."""
        section, costs = self.config.run, self.costs
        log(INFO, "%s, run %r: rounds %d to %d", self.name, section.name, self.round + 1, self.rounds)
        for depth in self.tiers:
            log(INFO, "  %s %d: %.3f M parameters, %.2f MMAC", self.parts.word, depth,
                self.parts.parameters(costs, depth) / 1e6, self.parts.macs(costs, depth) / 1e6)  # fmt: skip

    def arrays(self) -> ArrayRecord:
        """Return the global model as Flower's record."""
        return ArrayRecord(self.model)

    def global_network(self) -> EarlyExitNetwork:
        """Return the global network with its current weights."""
        self.network.load_state_dict(self.model)
        return self.network

    def lr(self, round_: int) -> float:
        """Return the clients' learning rate, lr * decay^(round - 1)."""
        return self.config.train.lr * self.config.train.lr_decay ** (round_ - 1)

    # Parts of a round

    def _run_round(self, grid: Grid, round_: int, timeout: float | None) -> Record:
        self.seconds, self.traffic, started = {}, {"down": 0, "up": 0}, time.perf_counter()
        deadline = timeout or self.config.round.deadline
        messages = self.configure_train(round_, None, None, grid)
        with self._phase("clients"):
            unanswered: dict[str, Message] = {}
            replies = exchange(grid, messages, deadline, unanswered)
            update = self._collect(round_, chain(replies, self.late.pull(grid)))
        owing = {i: [self._asked[c] for c in self._node_of[m.metadata.dst_node_id]] for i, m in unanswered.items()}
        self.late.expect(round_, self._bits(), deadline, owing)
        with self._phase("server"), threads(self.config.server.threads):
            terms = dict(self.merge(round_, update))
        self.committed |= {client: round_ for client, result in update.results.items() if result.kept}
        self.committed |= {client: asked for client, (asked, result) in update.late.items() if result.kept}
        self.trained |= set(update.results) | set(update.late)
        accuracy: Mapping[str, Any] = {}
        every = self.config.server.evaluate_every
        if self.evaluator and every and (round_ % every == 0 or round_ == self.rounds):
            with self._phase("evaluate"), threads(self.config.server.threads):
                accuracy = self.evaluate(final=round_ == self.rounds)
        client_accuracy: Mapping[str, Any] = {}
        if questions := self.configure_evaluate(round_, None, None, grid):
            with self._phase("client evaluation"):
                client_accuracy = self._client_scores(exchange(grid, questions, deadline))
        self.round = round_
        return Record(
            round=round_, rounds=self.rounds, accuracy=accuracy, terms=terms, client_metrics=update.mean_metrics(),
            client_accuracy=client_accuracy,
            failures=update.failures, rejected=sorted(update.rejected), late=sorted(update.late),
            clients=dict(sorted(Counter(r.part for r in update.results.values()).items())),
            seconds=self.seconds | {"round": time.perf_counter() - started}, traffic=dict(self.traffic),
        )  # fmt: skip

    def _discover(self, grid: Grid) -> None:
        section = self.config.round
        with self._phase("discover"):
            self.roster.discover(grid, self._order(0), section.min_nodes, section.wait, section.deadline)

    def _collect(self, round_: int, replies: Iterable[Message]) -> RoundUpdate:
        asked = {c: self.part(report) for c, report in self._asked.items()}
        announced = {c: report.num_examples for c, report in self._asked.items()}
        collector = make_collector(
            self.robust, self.uploads, self._bits(), asked, announced, self.part_state, apart=self.apart
        )
        node_of = self._node_of
        for message in replies:
            self.traffic["up"] = self.traffic.get("up", 0) + protocol.message_bytes(message)
            if self.late.take(message, collector, round_):
                continue
            clients = node_of.get(message.metadata.src_node_id, ())
            try:
                if message.has_error():
                    for client in clients:
                        collector.fail(client, f"its node failed: {_last_line(message.error.reason)}")
                else:
                    allowed = sum(self.client_array_bytes(self._asked[client]) for client in clients)
                    reply = protocol.unpack_reply(message.content, self.uploads, allowed)
                    self.roster.update(report for report in reply.reports if report.client in clients)
                    collector.add(reply, clients)
            except (ValueError, TypeError, KeyError) as error:
                for client in clients:
                    collector.reject(client, str(error))
            for client in set(clients) & set(collector.update.failures):
                self.lost(client)
        update = collector.finish()
        for depth, tier in update.tiers.items():  # frozen weights do not travel up
            tier.state.update({k: self.model[k] for k in self.layouts[depth].keys if k not in tier.state})
        for client, reason in update.failures.items():
            log(WARNING, "round %d: client %d is left out: %s", round_, client, reason)
        # rounded up, but not for what floating point adds to a whole number
        needed = max(1, math.ceil(self.config.round.quorum * len(asked) - 1e-9))
        if len(update.results) < needed:
            raise QuorumError(
                f"round {round_}: {len(update.results)} of {len(asked)} clients answered, "
                f"round.quorum asks for {needed}; continue later with run.resume; "
                f"first reason: {next(iter(update.failures.values()), 'none')}"
            )
        return update

    def _client_scores(self, replies: Iterable[Message]) -> dict[str, Any]:
        scores: dict[int, Mapping[str, np.ndarray]] = {}
        for message in replies:
            hosted = self._node_of.get(message.metadata.src_node_id, ())
            try:
                if message.has_error():
                    raise ValueError(_last_line(message.error.reason))
                reply = protocol.unpack_reply(message.content, {}, len(hosted) * SCORE_BYTES)
            except ValueError as error:
                log(WARNING, "node %d could not evaluate: %s", message.metadata.src_node_id, error)
                continue
            problems = {result.client: result.error for result in reply.results if result.error}
            for client in set(reply.client_arrays) & set(hosted):
                try:
                    check(reply.client_arrays[client], len(self.exit_macs(client)), self.measure)
                    scores[client] = reply.client_arrays[client]
                except ValueError as error:
                    problems[client] = str(error)
            for client, problem in sorted(problems.items()):
                log(WARNING, "client %d could not evaluate: %s", client, problem)
        loss, macs = self.config.server.accuracy_loss, {client: self.exit_macs(client) for client in scores}
        result = summarise(scores, self.trained, macs, loss, self.measure)
        depths = {client: self.part(self.roster.reports[client]) for client in scores}
        if len(set(depths.values())) > 1:
            groups = {d: {c: s for c, s in scores.items() if depths[c] == d} for d in sorted(set(depths.values()))}
            result["by_depth"] = {
                d: summarise(group, self.trained, macs, loss, self.measure) for d, group in groups.items()
            }
        return result

    def _messages(self, order: Order, clients: Sequence[ClientReport], kind: str) -> list[Message]:
        cost = {c.client: float(self.parts.macs(self.costs, self.part(c)) * c.num_examples) for c in clients}
        dealt = self.roster.deal(clients, cost)
        self._node_of = {node: tuple(c.client for c in members) for node, members in dealt.items()}
        # where parts are nested, the largest one that a node needs serves all its clients
        largest = {node: max(self.part(c) for c in members) for node, members in dealt.items()}
        serving = {c.client: largest[n] if self.nested else self.part(c) for n, cs in dealt.items() for c in cs}
        packed = {depth: protocol.pack_state(self.part_state(depth)) for depth in set(serving.values())}
        messages = []
        for node, members in dealt.items():
            names = {
                depth: protocol.MODEL if self.nested else f"part-{depth}"
                for depth in sorted({serving[c.client] for c in members})
            }
            tasks = tuple(
                Task(
                    c.client, self.part(c), self.committed.get(c.client, 0), names[serving[c.client]], c.num_examples,
                    self.client_values(c),
                ) for c in sorted(members, key=lambda c: c.client)
            )  # fmt: skip
            states = {name: packed[depth] for depth, name in names.items()} | dict(self.shared_states(members))
            content = protocol.pack_order(replace(order, tasks=tasks), states, self.client_arrays(members))
            message = Message(
                content=content, dst_node_id=node, message_type=kind,
                ttl=self.config.round.deadline * self.late.lives, group_id=str(order.round),
            )  # fmt: skip
            self.traffic["down"] = self.traffic.get("down", 0) + protocol.message_bytes(message)
            messages.append(message)
        return messages

    def _deliver(self, grid: Grid) -> None:
        """Give every reachable client its final model, for inference without a server."""
        if not self.roster.nodes:  # it was killed after its last round and has, when continued, asked none yet
            self._discover(grid)
        with self._phase("evaluate"), threads(self.config.server.threads):
            self.finish()
        with self._phase("deliver"):
            order = self._order(self.round)
            policy = self.evaluator.policy if self.evaluator else None
            facts = {
                "mean": self.normalizer.mean,
                "std": self.normalizer.std,
                "policy": policy.to_json() if policy else "",
                "personal": self.personal,
            }
            messages = self._messages(
                replace(order, round_values={**order.round_values, **facts}), self.roster.available(), protocol.DELIVER
            )
            for reply in exchange(grid, messages, self.config.round.deadline):
                for problem in _problems(reply):
                    log(WARNING, "node %d did not store a model: %s", reply.metadata.src_node_id, problem)

    def _order(self, round_: int) -> Order:
        return Order(
            run=self.config.run.name, config=self.config.to_json(), round=round_, bits=self._bits(),
            fold=not self.apart, network=self.spec.to_json(), classes=self.classes, costs=self.costs.to_json(),
            round_values={"lr": self.lr(round_), **self.round_values(round_)},
        )  # fmt: skip

    def _bits(self) -> int:
        return fraction_bits(sum(c.num_examples for c in self._asked.values()) + self.late.samples)

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def _last_line(reason: str | None) -> str:
    """Return what an exception said, without the stack above it."""
    return ((reason or "").strip().splitlines() or ["no reason given"])[-1]


def _problems(reply: Message) -> list[str]:
    """Return what went wrong on a node, or for which of its clients."""
    if reply.has_error():
        return [_last_line(reply.error.reason)]
    try:
        results = protocol.unpack_reply(reply.content, {}, 0).results
    except ValueError as error:
        return [str(error)]
    return [f"client {result.client}: {result.error}" for result in results if result.error]

"""A node hosts clients: it trains them in turn and folds their models.

The client half of a method does not depend on the node, nor on how many clients share it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from logging import WARNING
from typing import Any

import numpy as np
from flwr.supercore import log
from numpy.typing import NDArray

from common.data.fingerprint import look_again
from common.devices import keep_memory, set_kernels, threads
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.messages.protocol import CLIENT_STATE, ClientResult, NodeReport, Order, Payload, Reply, Task
from common.storage.model_file import ModelInfo
from common.weights.folding import Fold, UnfitError, check
from strategies.client_evaluation import score
from strategies.method import Job, LocalMethod, Outcome
from strategies.node.node import Node


def describe(order: Order, settings: Mapping[str, object]) -> NodeReport:
    """Answer a query: the clients of this node, and the part that each of them chooses.

    Every start of a run begins with a query, so this is where the process looks for changed files.
    """
    look_again()
    if order.notice:
        log(WARNING, "run %r: the server leaves out %s", order.run, order.notice)
    node = Node(order, settings)
    report = NodeReport(int(str(settings.get("partition-id", 0))), node.own_clients is None)
    try:
        node.check_machine()
    except UserError as error:
        return replace(report, problem=str(error))
    if node.own_clients is None:
        return replace(report, clients=tuple(node.report(client) for client in order.describe))
    clients = tuple(node.report(client) for client in node.own_clients)
    for refused in (client for client in clients if client.refused):
        log(WARNING, "run %r: client %d cannot take part: %s", order.run, refused.client, refused.refused)
    return replace(report, clients=clients)


def train(order: Order, payload: Payload, settings: Mapping[str, object]) -> Reply:
    """Train the order's clients; a client that fails is reported with its reason and the others go on."""
    node, reply = _ready(order, payload, settings), Reply([])
    local = node.method.local()
    # A client that is alone in its tier on this node sends fp32: the 64-bit sum of one would double its uplink.
    sharing = Counter(task.part for task in order.tasks)
    set_kernels(fast=node.config.run.fast)
    keep_memory()
    with threads(node.config.clients.threads):
        turns = (Turn(t, _train_client(node, payload, local, t, reply, sharing[t.part] > 1)) for t in order.tasks)
        for turn in _in_turn(turns, together=node.method.interleaved):
            task, outcome = turn.task, turn.outcome
            samples = 0 if turn.error else _weight(node, task)
            kept, metrics = outcome.kept is not None, outcome.metrics
            reply.results.append(
                ClientResult(task.client, task.part, samples, turn.seconds, turn.error, kept, metrics, turn.unfit)
            )
            arrays = dict(outcome.client_arrays)
            if kept and node.states_travel:
                arrays[CLIENT_STATE] = np.frombuffer(node.store.read(task.client, order.round), dtype=np.uint8)
            if arrays:
                reply.client_arrays[task.client] = arrays
    return reply


def evaluate(order: Order, payload: Payload, settings: Mapping[str, object]) -> Reply:
    """Let every client measure the model that it would use, on its own images; see `client_evaluation`."""
    node, reply = _ready(order, payload, settings), Reply([])
    local = node.method.local()

    def measure(task: Task) -> None:
        reply.client_arrays[task.client] = _scores(node, local, _personal_job(node, payload, local, task))

    return _each(node, order.tasks, measure, "could not evaluate", reply)


def deliver(order: Order, payload: Payload, settings: Mapping[str, object]) -> Reply:
    """Store the clients' final models: one per client if they are personal, else one per part."""
    node = _ready(order, payload, settings)
    local = node.method.local()
    tasks = order.tasks if node.method.personal else tuple({t.part: t for t in order.tasks}.values())
    return _each(
        node, tasks, lambda task: _store_model(node, payload, local, task), "did not store its model", Reply([])
    )


def _ready(order: Order, payload: Payload, settings: Mapping[str, object]) -> Node:
    """Return the node of an order, on a machine that can do it, with the states of its clients."""
    node = Node(order, settings)
    node.check_machine()
    node.receive_states(payload)
    return node


def _each(node: Node, tasks: Iterable[Task], act: Callable[[Task], None], failed: str, reply: Reply) -> Reply:
    """Act for one client after another; what one client's data raises is its result and stops no other."""
    set_kernels(fast=node.config.run.fast)
    keep_memory()
    with threads(node.config.clients.threads):
        for task in tasks:
            error = ""
            try:
                act(task)
            except Exception as problem:
                log(WARNING, f"client %d {failed}", task.client, exc_info=problem)
                error = f"{type(problem).__name__}: {problem}"
            reply.results.append(ClientResult(task.client, task.part, error=error))
    return reply


@dataclass
class Turn:
    """A client's training, advanced step by step so that a node can serve several clients that stream."""

    task: Task
    steps: Generator[None, None, Outcome]
    outcome: Outcome = field(default_factory=lambda: Outcome(None))
    seconds: float = 0.0
    error: str = ""
    unfit: bool = False  # whether that is because of the trained weights

    def advance(self) -> bool:
        """Take one step; return whether it was the last. What a client's data or method raises stays with it."""
        started = time.perf_counter()
        try:
            next(self.steps)
        except StopIteration as end:
            self.outcome = end.value
        except Exception as problem:
            log(WARNING, "client %d failed", self.task.client, exc_info=problem)
            self.error, self.unfit = f"{type(problem).__name__}: {problem}", isinstance(problem, UnfitError)
        else:
            return False
        finally:
            self.seconds += time.perf_counter() - started
        return True


def _in_turn(turns: Iterable[Turn], *, together: bool) -> Iterator[Turn]:
    """Yield each turn when it is done: one after another, or all of them step by step."""
    waiting = deque(turns)
    while waiting:
        turn = waiting.popleft()
        if turn.advance():
            yield turn
        elif together:
            waiting.append(turn)
        else:
            waiting.appendleft(turn)


def _train_client(
    node: Node, payload: Payload, local: LocalMethod, task: Task, reply: Reply, shares_tier: bool
) -> Generator[None, None, Outcome]:
    if node.declares:
        report = node.report(task.client)
        if (report.part, report.num_examples) != (task.part, task.samples):
            reply.reports.append(report)
        if report.part < task.part:
            raise UserError(f"asked for {node.parts.word} {task.part}, but {report.reason}")
    job = _job(node, payload, task, training=True)
    local.load(job, payload.states[task.arrays])
    outcome = yield from local.steps(job)
    if outcome.state is not None:
        check(outcome.state, job.upload_layout)
    if outcome.kept is not None:
        # before the fold: a client whose disk is full must not fail once its model is part of a sum that others share
        node.store.save(task.client, node.order.round, outcome.kept)
    if outcome.state is not None and node.order.fold and shares_tier:
        fold = reply.folds.setdefault(task.part, Fold(outcome.state.layout, node.order.bits))
        fold.add_state(outcome.state, _weight(node, task), task.client)
    elif outcome.state is not None:
        reply.lone[task.client] = outcome.state
    return replace(outcome, state=None)  # let go of the model: a node may host many clients


def _weight(node: Node, task: Task) -> int:
    """Return how many samples a client's model counts for: new samples count from the next report on."""
    return min(node.samples(task.client), task.samples)


def _job(node: Node, payload: Payload, task: Task, *, training: bool) -> Job:
    order = node.order
    # a round's evaluation comes before its checkpoint
    kept = node.store.load(task.client, task.version, prune=training)
    model = node.model(task.part, shared=not node.method.interleaved)
    return Job(
        task.client, task.part, order.round, node.config, model, node.device, partial(node.data, task.client),
        order.round_values, task.client_values, payload.client_arrays.get(task.client, {}), kept,
        partial(node.method.travels, node.config), partial(node.initial, task.part), payload.states,
    )  # fmt: skip


def _personal_job(node: Node, payload: Payload, local: LocalMethod, task: Task) -> Job:
    job = _job(node, payload, task, training=False)
    local.load(job, payload.states[task.arrays])
    local.personalise(job)
    return job


def _store_model(node: Node, payload: Payload, local: LocalMethod, task: Task) -> None:
    order, facts = node.order, node.order.round_values
    folder = node.store.folder
    job, policy = _personal_job(node, payload, local, task), str(facts["policy"])
    name = f"{node.parts.word}-{task.part}"
    if node.method.personal:
        policy = _own_policy(_scores(node, local, job), node.method.measure)
        name = f"client-{task.client:06d}"
    depth, cut = node.method.parts.stored(task.part)
    info = ModelInfo(
        order.network, depth, order.classes, tuple(facts["mean"]), tuple(facts["std"]), policy, cut, order.run
    )
    local.store(job, folder / name, info)


def _scores(node: Node, local: LocalMethod, job: Job) -> dict[str, NDArray[Any]]:
    macs = node.parts.exit_macs(job.part)
    return score(local.network(job), job.data(), macs, job.config.server.accuracy_loss, node.method.measure)


def _own_policy(scores: Mapping[str, NDArray[Any]], measure: str) -> str:
    """Return the exit policy that a client tuned on its own validation data, as JSON; empty without any.

    It is for the network that was evaluated: of a device with a server behind it, the last exit is the server's.
    """
    if not scores:
        return ""
    return ThresholdPolicy((float(scores["threshold"][0]),) * (len(scores["exits"]) - 1), measure).to_json()

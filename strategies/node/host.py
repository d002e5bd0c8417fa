"""A node hosts clients: it trains them in turn and folds their models.

The client half of a method knows neither the node nor how many clients share it.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from logging import WARNING
from typing import Any

from flwr.supercore import log
from numpy.typing import NDArray

from common import paths
from common.devices import deterministic, keep_memory, threads
from common.errors import UserError
from common.exits import ThresholdPolicy
from common.messages.protocol import ClientResult, NodeReport, Order, Payload, Reply, Task
from common.storage.model_file import ModelInfo
from common.weights.folding import Fold, UnfitError, check
from strategies.client_evaluation import score
from strategies.node.local_training import Job, LocalMethod, Outcome
from strategies.node.node import Site


def describe(order: Order, node: Mapping[str, object]) -> NodeReport:
    """Answer a query: which clients this node has, and what depth each of them chooses."""
    site = Site(order, node)
    clients = order.describe if site.own_clients is None else site.own_clients
    reports = tuple(site.report(client) for client in clients)
    return NodeReport(int(str(node.get("partition-id", 0))), site.own_clients is None, reports)


def train(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Train the order's clients; one that fails is reported with its reason and the others go on."""
    site, reply = Site(order, node), Reply([])
    local = site.method.local()
    # A client that is alone in its tier here sends fp32: the 64-bit sum of one would double its uplink.
    sharing = Counter(task.part for task in order.tasks)
    deterministic()
    keep_memory()
    with threads(site.config.clients.threads):
        turns = (Turn(t, _train_client(site, payload, local, t, reply, sharing[t.part] > 1)) for t in order.tasks)
        for turn in _in_turn(turns, together=bool(order.round_values.get("interleave"))):
            task, outcome = turn.task, turn.outcome
            samples = 0 if turn.error else _weight(site, task)
            kept, metrics = outcome.kept is not None, outcome.metrics
            reply.results.append(
                ClientResult(task.client, task.part, samples, turn.seconds, turn.error, kept, metrics, turn.unfit)
            )
            if outcome.client_arrays:
                reply.client_arrays[task.client] = outcome.client_arrays
    return reply


def evaluate(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Let every client measure the model that it would use, on its own images; see `client_evaluation`."""
    site, reply = Site(order, node), Reply([])
    local = site.method.local()

    def measure(task: Task) -> None:
        reply.client_arrays[task.client] = _scores(site, local, _personal_job(site, payload, local, task))

    return _each(site, order.tasks, measure, "could not evaluate", reply)


def deliver(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Store the clients' final models: one per client if they are personal, else one per depth, whoever shares it."""
    site = Site(order, node)
    local = site.method.local()
    tasks = order.tasks if order.round_values["personal"] else tuple({t.part: t for t in order.tasks}.values())
    return _each(
        site, tasks, lambda task: _store_model(site, payload, local, task), "did not store its model", Reply([])
    )


def _each(site: Site, tasks: Iterable[Task], act: Callable[[Task], None], failed: str, reply: Reply) -> Reply:
    """Act for one client after another; what one client's data raises is its result and stops no other."""
    deterministic()
    keep_memory()
    with threads(site.config.clients.threads):
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
    site: Site, payload: Payload, local: LocalMethod, task: Task, reply: Reply, shares_tier: bool
) -> Generator[None, None, Outcome]:
    if site.declares:
        report = site.report(task.client)
        if (report.part, report.num_examples) != (task.part, task.samples):
            reply.reports.append(report)
        if report.part < task.part:
            raise UserError(f"asked for depth {task.part}, but {report.reason}")
    job = _job(site, payload, task, training=True)
    local.load(job, payload.states[task.arrays])
    outcome = yield from local.steps(job)
    if outcome.state is not None:
        check(outcome.state, job.upload_layout)
    if outcome.kept is not None:
        # before the fold: a client whose disk is full must not fail once its model is part of a sum that others share
        site.store.save(task.client, site.order.round, outcome.kept)
    if outcome.state is not None and site.order.fold and shares_tier:
        fold = reply.folds.setdefault(task.part, Fold(outcome.state.layout, site.order.bits))
        fold.add_state(outcome.state, _weight(site, task), task.client)
    elif outcome.state is not None:
        reply.lone[task.client] = outcome.state
    return replace(outcome, state=None)  # let go of the model: a node may host many clients


def _weight(site: Site, task: Task) -> int:
    """Return how many samples a client's model counts for: new ones count once the server knows of them."""
    return min(site.samples(task.client), task.samples)


def _job(site: Site, payload: Payload, task: Task, *, training: bool) -> Job:
    order = site.order
    # a round's evaluation comes before its checkpoint
    kept = site.store.load(task.client, task.version, prune=training)
    model = site.model(task.part, shared=not order.round_values.get("interleave"))
    return Job(
        task.client, task.part, order.round, site.config, model, site.device, partial(site.data, task.client),
        order.round_values, task.client_values, payload.client_arrays.get(task.client, {}), kept,
        partial(site.method.travels, site.config), partial(site.initial, task.part), payload.states,
    )  # fmt: skip


def _personal_job(site: Site, payload: Payload, local: LocalMethod, task: Task) -> Job:
    job = _job(site, payload, task, training=False)
    local.load(job, payload.states[task.arrays])
    local.personalise(job)
    return job


def _store_model(site: Site, payload: Payload, local: LocalMethod, task: Task) -> None:
    order, facts = site.order, site.order.round_values
    folder = paths.store_root(site.config.clients.store, site.node.get("state")) / order.run
    job, policy = _personal_job(site, payload, local, task), str(facts["policy"])
    name = f"{site.method.parts.word}-{task.part}"
    if facts["personal"]:
        policy = _own_policy(_scores(site, local, job), site.method.measure)
        name = f"client-{task.client:06d}"
    depth, cut = site.method.parts.named(task.part)
    info = ModelInfo(
        order.network, depth, order.classes, tuple(facts["mean"]), tuple(facts["std"]), policy, cut, order.run
    )
    local.store(job, folder / name, info)


def _scores(site: Site, local: LocalMethod, job: Job) -> dict[str, NDArray[Any]]:
    macs = site.method.parts.exit_macs(site.costs, job.part)
    return score(local.network(job), job.data(), macs, job.config.server.accuracy_loss, site.method.measure)


def _own_policy(scores: Mapping[str, NDArray[Any]], measure: str) -> str:
    """Return the exit policy that a client tuned on its own validation data, as JSON; empty without any.

    It is for the network that was evaluated: of a device with a server behind it, the last exit is the server's.
    """
    if not scores:
        return ""
    return ThresholdPolicy((float(scores["threshold"][0]),) * (len(scores["exits"]) - 1), measure).to_json()

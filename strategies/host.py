"""A node hosts clients: it trains them in turn and folds their models.

The client half of a method knows neither the node nor how many clients share it.
"""

import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from logging import WARNING

import torch
from flwr.supercore import log

from common import paths
from common.bundle import FILE, BundleInfo, save_bundle
from common.devices import deterministic, threads
from common.errors import UserError
from common.exits import correct_counts
from common.folding import Fold, check
from common.protocol import ClientResult, NodeReport, Order, Payload, Reply, Task
from strategies.local import Job, LocalMethod, Outcome
from strategies.registry import method
from strategies.site import Site


def describe(order: Order, node: Mapping[str, object]) -> NodeReport:
    """Answer a query: which clients this node has, and what depth each of them chooses."""
    site = Site(order, node)
    clients = order.describe if site.own_clients is None else site.own_clients
    reports = tuple(site.report(client) for client in clients)
    return NodeReport(int(str(node.get("partition-id", 0))), site.own_clients is None, reports)


def train(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Train the order's clients; one that fails is reported with its reason and the others go on."""
    site, reply = Site(order, node), Reply([])
    local = method(site.config.run.strategy).local()
    # A client that is alone in its tier here sends fp32: the 64-bit sum of one would double its uplink.
    sharing = Counter(task.depth for task in order.tasks)
    deterministic()
    with threads(site.config.clients.threads):
        for task in order.tasks:
            started, outcome, samples, error = time.perf_counter(), Outcome(None), 0, ""
            try:
                samples = site.samples(task.client)
                outcome = _train_client(site, payload, local, task, reply)
                if outcome.state is not None and order.fold and sharing[task.depth] > 1:
                    fold = reply.folds.setdefault(task.depth, Fold(outcome.state.layout, order.bits))
                    fold.add_state(outcome.state, samples, task.client)
                elif outcome.state is not None:
                    reply.lone[task.client] = outcome.state
            except Exception as problem:  # whatever a client's data or method raises must not take the others along
                log(WARNING, "client %d failed", task.client, exc_info=problem)
                outcome, samples, error = Outcome(None), 0, f"{type(problem).__name__}: {problem}"
            seconds, kept = time.perf_counter() - started, outcome.kept is not None
            reply.results.append(ClientResult(task.client, task.depth, samples, seconds, error, kept, outcome.metrics))
            if outcome.entries:
                reply.entries[task.client] = outcome.entries
    return reply


def evaluate(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Count the samples that each exit gets right, on every client's own validation images."""
    site, reply = Site(order, node), Reply([])
    with threads(site.config.clients.threads), torch.inference_mode():
        for task in order.tasks:
            model, images, metrics = site.model(task.depth), site.data(task.client), {}
            model.load(payload.states[task.arrays])
            if len(images.validation_y):
                logits = torch.stack(model.module.eval()(images.validation_x))
                correct = correct_counts(logits, images.validation_y).tolist()
                metrics = {f"exit-{e}": float(n) for e, n in enumerate(correct, start=1)}
                metrics["examples"] = float(len(images.validation_y))
            reply.results.append(ClientResult(task.client, task.depth, metrics=metrics))
    return reply


def deliver(order: Order, payload: Payload, node: Mapping[str, object]) -> Reply:
    """Store the clients' final models: one file per depth, whatever the number of clients that share it."""
    site, facts = Site(order, node), order.method
    folder = paths.store_root(site.config.clients.store, node.get("state")) / order.run
    for depth, arrays in sorted({(task.depth, task.arrays) for task in order.tasks}):
        model = site.model(depth)
        model.load(payload.states[arrays])
        constants = tuple(facts["mean"]), tuple(facts["std"])
        info = BundleInfo(order.network, depth, order.classes, *constants, str(facts["policy"]))
        save_bundle(folder / f"depth-{depth}" / FILE, model.module.state_dict(), info)
    return Reply([ClientResult(task.client, task.depth) for task in order.tasks])


def _train_client(site: Site, payload: Payload, local: LocalMethod, task: Task, reply: Reply) -> Outcome:
    order = site.order
    if site.declares:
        report = site.report(task.client)
        if report.depth != task.depth:
            reply.reports.append(report)
        if report.depth < task.depth:
            raise UserError(f"asked for depth {task.depth}, but {report.reason}")
    model = site.model(task.depth)
    model.load(payload.states[task.arrays])
    job = Job(
        task.client, task.depth, order.round, site.config, model, site.device, partial(site.data, task.client),
        order.method, task.extra, payload.entries.get(task.client, {}), site.store.load(task.client, task.version),
    )  # fmt: skip
    outcome = local.train(job)
    if outcome.state is not None:
        check(outcome.state, local.layout(model))
    if outcome.kept is not None:
        # before the fold: a client whose disk is full must not fail once its model is part of a sum that others share
        site.store.save(task.client, order.round, outcome.kept)
    return outcome

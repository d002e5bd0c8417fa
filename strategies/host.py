"""A node hosts clients: it builds each tier once, decodes data once, trains its clients in turn and folds their models.

The client half of a method knows neither the node nor how many clients share it.
"""

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from logging import WARNING

import torch
from flwr.supercore import log

from common import paths
from common.bundle import FILE, BundleInfo, save_bundle
from common.capacity import Choice, choose_depth, mix_depth, parse_capacity
from common.client_store import ClientStore
from common.config import RunConfig, load_config
from common.data.clients import ClientImages, Population, own_images, shared_images
from common.devices import deterministic, pick_device, threads
from common.errors import UserError
from common.exits import correct_counts
from common.flat import FlatModel
from common.folding import Fold, check
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.networks.cost import CostTable
from common.protocol import ClientReport, ClientResult, NodeReport, Order, Payload, Reply, Task
from strategies.local import Job, LocalMethod, Outcome
from strategies.registry import method, sections

NodeConfig = Mapping[str, object]


def describe(order: Order, node: NodeConfig) -> NodeReport:
    """Answer a query: which clients this node has, and what depth each of them chooses."""
    config = read_config(order.config)
    own = own_clients(node, config)
    clients = order.describe if own is None else own
    reports = tuple(_report(order, config, node, client) for client in clients)
    return NodeReport(int(str(node.get("partition-id", 0))), own is None, reports)


def train(order: Order, payload: Payload, node: NodeConfig) -> Reply:
    """Train the order's clients; one that fails is reported with its reason and the others go on."""
    config, reply = read_config(order.config), Reply([])
    local = method(config.run.strategy).local()
    deterministic()
    with threads(config.clients.threads):
        for task in order.tasks:
            started, outcome, error = time.perf_counter(), Outcome(None), ""
            try:
                outcome, examples = _train_client(order, payload, node, config, local, task, reply)
            except Exception as problem:  # whatever a client's data or method raises must not take the others along
                log(WARNING, "client %d failed", task.client, exc_info=problem)
                examples, error = 0, f"{type(problem).__name__}: {problem}"
            seconds = time.perf_counter() - started
            kept = outcome.kept is not None
            reply.results.append(ClientResult(task.client, task.depth, examples, seconds, error, kept, outcome.metrics))
            if outcome.entries:
                reply.entries[task.client] = outcome.entries
    return reply


def evaluate(order: Order, payload: Payload, node: NodeConfig) -> Reply:
    """Count the samples that each exit gets right, on every client's own validation images."""
    config, reply = read_config(order.config), Reply([])
    device = pick_device(config.clients.device)
    with threads(config.clients.threads), torch.inference_mode():
        for task in order.tasks:
            model = _model(order, config, task.depth, device)
            model.load(payload.states[task.arrays])
            images = _images(order, config, node, task.client, device)
            metrics = {}
            if len(images.validation_y):
                logits = torch.stack(model.module.eval()(images.validation_x))
                correct = correct_counts(logits, images.validation_y).tolist()
                metrics = {f"exit-{e}": float(n) for e, n in enumerate(correct, start=1)}
                metrics["examples"] = float(len(images.validation_y))
            reply.results.append(ClientResult(task.client, task.depth, metrics=metrics))
    return reply


def deliver(order: Order, payload: Payload, node: NodeConfig) -> Reply:
    """Store each client's final model: one file per depth, whatever the number of clients that share it."""
    config = read_config(order.config)
    folder = paths.store_root(config.clients.store, node.get("state")) / order.run
    normal = order.method
    for depth in sorted({task.depth for task in order.tasks}):
        state = payload.states[order.tasks[0].arrays].state_dict()
        info = BundleInfo(
            order.network, depth, order.classes, tuple(normal["mean"]), tuple(normal["std"]), str(normal["policy"])
        )
        network = network_of(order.network, config.run.seed).prefix(depth)
        save_bundle(folder / f"depth-{depth}" / FILE, {key: state[key] for key in network.state_dict()}, info)
    return Reply([ClientResult(task.client, task.depth) for task in order.tasks])


@lru_cache(maxsize=8)
def read_config(text: str) -> RunConfig:
    """Return the server's configuration."""
    return load_config(json.loads(text), sections())


@lru_cache(maxsize=2)
def network_of(spec: str, seed: int) -> EarlyExitNetwork:
    """Return the whole network of a spec."""
    return build(NetworkSpec.from_json(spec), seed)


def own_clients(node: NodeConfig, config: RunConfig) -> tuple[int, ...] | None:
    """Return the ids of the clients at home on this node, or None if it may host any virtual client."""
    if "client-ids" in node:
        return tuple(int(part) for part in str(node["client-ids"]).split(","))
    if "client-id" in node:
        return (int(str(node["client-id"])),)
    if per_node := config.clients.per_node:
        first = int(str(node.get("partition-id", 0))) * per_node
        return tuple(range(first, min(first + per_node, config.clients.count)))
    return None


def _train_client(  # noqa: PLR0917
    order: Order, payload: Payload, node: NodeConfig, config: RunConfig, local: LocalMethod, task: Task, reply: Reply
) -> tuple[Outcome, int]:
    device = pick_device(config.clients.device)
    images = _images(order, config, node, task.client, device)
    if _declares(node):
        report = _report(order, config, node, task.client)
        if report.depth != task.depth:
            reply.reports.append(report)
        if report.depth < task.depth:
            raise UserError(f"asked for depth {task.depth}, but {report.reason}")
    model = _model(order, config, task.depth, device)
    model.load(payload.states[task.arrays])
    store = ClientStore(paths.store_root(config.clients.store, node.get("state")), order.run)
    job = Job(
        task.client, task.depth, order.round, config, model, images.x, images.y, device,
        order.method, task.extra, payload.entries.get(task.client, {}), store.load(task.client, task.version),
    )  # fmt: skip
    outcome = local.train(job)
    if outcome.state is not None:
        check(outcome.state, local.layout(model))
    if outcome.kept is not None:
        # before the fold: a client whose disk is full must not fail once its model is part of a sum that others share
        store.save(task.client, order.round, outcome.kept)
    if outcome.state is not None:
        # A client that is alone in its tier here sends fp32: the 64-bit sum of one would double its uplink.
        alone = sum(t.depth == task.depth for t in order.tasks) == 1
        if alone or not order.fold:
            reply.lone[task.client] = outcome.state
        else:
            fold = reply.folds.setdefault(task.depth, Fold(outcome.state.layout, order.bits))
            fold.add_state(outcome.state, len(images.y), task.client)
    return outcome, len(images.y)


def _report(order: Order, config: RunConfig, node: NodeConfig, client: int) -> ClientReport:
    try:
        samples = _num_samples(order, config, node, client)
        choice = _choose(order, config, node, client, samples)
    except UserError as error:
        return ClientReport(client, 0, str(error), 0, refused=str(error))
    refused = choice.reason if choice.depth == 0 else "" if samples else "it has no training images"
    return ClientReport(client, choice.depth, choice.reason, samples, refused)


def _choose(order: Order, config: RunConfig, node: NodeConfig, client: int, samples: int) -> Choice:
    costs = CostTable.from_json(order.costs)
    if _declares(node) or node.get("capacity") == "auto":
        return choose_depth(parse_capacity(node), costs, config.train.batch_size, samples)
    return Choice(
        mix_depth(config.clients.mix, client, config.clients.count, len(costs.tiers)), f"mix {config.clients.mix}"
    )


def _declares(node: NodeConfig) -> bool:
    return any(key in node for key in ("depth", "memory", "compute"))


def _num_samples(order: Order, config: RunConfig, node: NodeConfig, client: int) -> int:
    if "data" in node:
        return len(_images(order, config, node, client, torch.device("cpu")).y)
    return len(_population(config).split(client)[0])


def _images(order: Order, config: RunConfig, node: NodeConfig, client: int, device: torch.device) -> ClientImages:
    if "data" in node:
        shape = NetworkSpec.from_json(order.network).input_shape
        return own_images(str(node["data"]), config.data, order.classes, shape, config.run.seed, device)
    return shared_images(_population(config), client, device)


def _population(config: RunConfig) -> Population:
    return Population(config.data, config.clients.count, config.run.seed)


def _model(order: Order, config: RunConfig, depth: int, device: torch.device) -> FlatModel:
    return _cached_model(order.network, config.run.seed, depth, device)


@lru_cache(maxsize=16)
def _cached_model(spec: str, seed: int, depth: int, device: torch.device) -> FlatModel:
    return FlatModel(network_of(spec, seed).prefix(depth).to(device))

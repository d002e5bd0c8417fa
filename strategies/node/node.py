"""A node as an order sees it: its clients, their images, their choice of depth, and the models that it has built.

What is expensive (networks, decoded data) is cached per process: simulation workers and warm device processes serve
many messages.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from common import paths
from common.capacity import DECLARED, Choice, mix_depth, parse_capacity
from common.config import RunConfig, load_config
from common.data.clients import ClientData, Population, own_data, shared_data
from common.devices import pick_device
from common.errors import UserError
from common.messages.protocol import ClientReport, Order
from common.networks import EarlyExitNetwork
from common.storage.client_store import ClientStore
from common.weights.flat import FlatModel, StateDict
from strategies.registry import Method, method, sections


@dataclass(frozen=True)
class Site:
    """One order on one node."""

    order: Order
    node: Mapping[str, object]  # Flower's node configuration

    @cached_property
    def config(self) -> RunConfig:
        """The server's configuration."""
        return _read_config(self.order.config)

    @cached_property
    def device(self) -> torch.device:
        """Where this node's clients train."""
        return pick_device(self.config.clients.device)

    @cached_property
    def store(self) -> ClientStore:
        """What this node's clients keep between rounds."""
        return ClientStore(paths.store_root(self.config.clients.store, self.node.get("state")), self.order.run)

    @cached_property
    def own_clients(self) -> tuple[int, ...] | None:
        """The ids of the clients at home on this node, or None if it may host any virtual client."""
        if "client-ids" in self.node:
            return tuple(int(part) for part in str(self.node["client-ids"]).split(","))
        if "client-id" in self.node:
            return (int(str(self.node["client-id"])),)
        if per_node := self.config.clients.per_node:
            first = int(str(self.node.get("partition-id", 0))) * per_node
            return tuple(range(first, min(first + per_node, self.config.clients.count)))
        return None

    @cached_property
    def declares(self) -> bool:
        """Whether this node states its capacity; a probed one would change with every measurement."""
        return any(key in self.node for key in ("depth", "cut", *DECLARED))

    def report(self, client: int) -> ClientReport:
        """Return what a client declares: the depth it chooses and why, or why it cannot take part."""
        try:
            samples = self.samples(client)
            choice = self._choose(client, samples)
        except UserError as error:
            return ClientReport(client, 0, str(error), 0, refused=str(error))
        refused = choice.reason if choice.part == 0 else "" if samples else "it has no training images"
        return ClientReport(client, choice.part, choice.reason, samples, refused, choice.lean)

    def samples(self, client: int) -> int:
        """Return how many images a client trains on; a virtual client's images are not touched for that."""
        return len(self.data(client).y) if "data" in self.node else len(self._population.split(client)[0])

    def data(self, client: int) -> ClientData:
        """Return a client's images on the device."""
        if "data" in self.node:
            shape, folder = self.method.parts.spec(self.order.network).input_shape, str(self.node["data"])
            return own_data(folder, self.config.data, self.order.classes, shape, self.config.run.seed, self.device)
        return shared_data(self._population, client, self.device)

    def model(self, depth: int, *, shared: bool = True) -> FlatModel[EarlyExitNetwork]:
        """Return the tier's prefix; if shared, its weights are those of whoever used it last."""
        make = _model if shared else _model.__wrapped__
        return make(self.order.network, self.config.run.seed, self.config.run.strategy, depth, self.device)

    def initial(self, depth: int) -> StateDict:
        """Return the tier's prefix as the run's seed makes it, on the CPU."""
        return _initial(self.order.network, self.config.run.seed, self.config.run.strategy, depth)

    @cached_property
    def method(self) -> Method:
        """The run's method."""
        return method(self.config.run.strategy)

    @cached_property
    def costs(self) -> Any:
        """What the method's parts cost."""
        return self.method.parts.read_costs(self.order.costs)

    def _choose(self, client: int, samples: int) -> Choice:
        parts, section = self.method.parts, self.config.clients
        if self.declares or "capacity" in self.node:
            return parts.choose(parse_capacity(self.node), self.costs, self.config, samples, client)
        numbers = parts.numbers(self.costs, self.config)
        place = mix_depth(section.mix, client, section.count, len(numbers))
        return Choice(numbers[place - 1], f"mix {section.mix}")

    @cached_property
    def _population(self) -> Population:
        return Population(self.config.data, self.config.clients.count, self.config.run.seed)


@lru_cache(maxsize=8)
def _read_config(text: str) -> RunConfig:
    return load_config(json.loads(text), sections())


@lru_cache(maxsize=2)
def _network(spec: str, seed: int, strategy: str) -> EarlyExitNetwork:
    parts = method(strategy).parts
    network: EarlyExitNetwork = parts.whole(parts.spec(spec), seed)
    return network


@lru_cache(maxsize=16)
def _initial(spec: str, seed: int, strategy: str, depth: int) -> StateDict:
    state: StateDict = method(strategy).parts.take(_network(spec, seed, strategy), depth).state_dict()
    return state


@lru_cache(maxsize=16)
def _model(spec: str, seed: int, strategy: str, depth: int, device: torch.device) -> FlatModel[EarlyExitNetwork]:
    return FlatModel(method(strategy).parts.take(_network(spec, seed, strategy), depth).to(device))

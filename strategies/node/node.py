"""A node as an order sees it: its clients, their samples, their choice of a part, and the models that it has built.

What is expensive (networks, decoded data) is cached per process: simulation workers and warm device processes serve
many messages.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import cast

import torch

from common import paths, plugins
from common.capacity import DECLARED, OVERRIDES, Capacity, Choice, mix_depth, parse_capacity
from common.config import RunConfig, load_config
from common.data import load
from common.data.clients import ClientData, OwnFolder, Population, own_data, shared_data
from common.devices import pick_device
from common.errors import UserError
from common.messages.protocol import CLIENT_STATE, ClientReport, Order, Payload
from common.networks import EarlyExitNetwork
from common.profiles import Profile, device_of, parse_devices
from common.sources import digest, machine
from common.storage.client_store import ClientStore
from common.weights.flat import FlatModel, StateDict
from strategies.method import Method
from strategies.parts import Division
from strategies.registry import find_method


@dataclass(frozen=True)
class Node:
    """One order on one node."""

    order: Order
    settings: Mapping[str, object]  # Flower's node configuration

    @cached_property
    def config(self) -> RunConfig:
        """The server's configuration: the common sections and those of the run's method."""
        return _read_config(self.order.config)

    @cached_property
    def method(self) -> Method:
        """The run's method."""
        return find_method(self.config.run.strategy)

    @cached_property
    def parts(self) -> Division:
        """The run's network, divided into parts."""
        return _division(self.method.name, self.order.network, self.config.run.seed, self.order.costs)

    @cached_property
    def device(self) -> torch.device:
        """The device on which this node's clients train."""
        return pick_device(self.config.clients.device)

    @cached_property
    def store(self) -> ClientStore:
        """What this node's clients keep between rounds."""
        return ClientStore(paths.store_root(self.config.clients.store, self.settings.get("state")), self.order.run)

    @cached_property
    def virtual(self) -> bool:
        """Whether this node is a simulation's worker: any machine of a cluster may do its work."""
        return not self.settings.keys() & {"client-id", "client-ids", "data"}

    def check_machine(self) -> None:
        """Raise `UserError` unless this machine has the server's packages, the shared store and the data."""
        if self.order.digest not in ("", own := digest()):
            raise UserError(
                f"machine {machine()}: its packages of this app are not the server's (digest {own}, the server has "
                f"{self.order.digest}): install the same version there"
            )
        try:
            if self.order.token:
                self.store.check(self.order.token)
            if self.order.config:
                data = {"data.name": self.config.data.name} if self.virtual else {}
                plugins.check({"network.name": self.config.network.name} | data, "a client")
            if self.virtual and self.order.config:
                load(self.config.data, paths.cache_root())
        except UserError as error:
            raise UserError(f"machine {machine()}: {error}") from error

    def receive_states(self, payload: Payload) -> None:
        """Store the states that the order's clients have with the server."""
        versions = {task.client: task.version for task in self.order.tasks}
        for client, arrays in payload.client_arrays.items() if self.states_travel else ():
            if client in versions and (state := arrays.pop(CLIENT_STATE, None)) is not None:
                self.store.write(client, versions[client], state.tobytes())

    @property
    def states_travel(self) -> bool:
        """Whether the server keeps the clients' states."""
        return self.config.clients.state == "server"

    @cached_property
    def own_clients(self) -> tuple[int, ...] | None:
        """The ids of the clients at home on this node, or None if it may host any virtual client."""
        if "client-ids" in self.settings:
            return tuple(int(part) for part in str(self.settings["client-ids"]).split(","))
        if "client-id" in self.settings:
            return (int(str(self.settings["client-id"])),)
        if per_node := self.config.clients.per_node:
            first = int(str(self.settings.get("partition-id", 0))) * per_node
            return tuple(range(first, min(first + per_node, self.config.clients.count)))
        return None

    @cached_property
    def declares(self) -> bool:
        """Whether this node states its capacity; a probed capacity would change with every measurement."""
        return any(key in self.settings for key in (*OVERRIDES, *DECLARED))

    def report(self, client: int) -> ClientReport:
        """Return what a client declares: the part that it chooses and why, or why it cannot take part."""
        try:
            samples = self.samples(client)
            device = self._device(client)
            choice, profile = self._choose(client, samples, device), self._profile(device)
        except UserError as error:
            return ClientReport(client, 0, str(error), 0, refused=str(error))
        refused = choice.reason if choice.part == 0 else "" if samples else "it has no training images"
        return ClientReport(client, choice.part, choice.reason, samples, refused, choice.values, profile)

    def samples(self, client: int) -> int:
        """Return how many samples a client trains on; a virtual client's samples are not loaded for that."""
        return len(self.data(client).y) if "data" in self.settings else len(self._population.split(client)[0])

    def data(self, client: int) -> ClientData:
        """Return a client's samples on the device."""
        if "data" in self.settings:
            shape, folder = self.parts.spec.input_shape, str(self.settings["data"])
            own = OwnFolder(folder, self.config.data, self.order.classes, shape, self.config.run.seed)
            return own_data(own, self.device)
        return shared_data(self._population, client, self.device)

    def model(self, part: int, *, shared: bool = True) -> FlatModel[EarlyExitNetwork]:
        """Return the part's model; a shared one has the weights of the client that used it last."""
        make = _model if shared else _model.__wrapped__
        return make(self.method.name, self.order.network, self.config.run.seed, part, self.device)

    def initial(self, part: int) -> StateDict:
        """Return the part's weights as the run's seed makes them, on the CPU."""
        return _initial(self.method.name, self.order.network, self.config.run.seed, part)

    @cached_property
    def _declared(self) -> Capacity | None:
        """What this node declares or measures; None if it says nothing."""
        return parse_capacity(self.settings) if self.declares or "capacity" in self.settings else None

    def _device(self, client: int) -> tuple[str, Profile] | None:
        """Return the device that a virtual client is, by `clients.devices`; None if it is none in particular.

        Raises `UserError` for a real one, which is what it declares.
        """
        section = self.config.clients
        if section.devices and not self.virtual:
            raise UserError(
                f"clients.devices is {section.devices!r}, but this device is a real one, which declares its own "
                "capacity: leave it empty"
            )
        if not section.devices or self._declared is not None:
            return None
        name = device_of(parse_devices(section.devices), client, section.count)
        return name, Profile(**self.order.profiles[name])

    def _profile(self, device: tuple[str, Profile] | None) -> dict[str, float]:
        """Return the profile by which the client is timed, `Profile.known`; {} if the clock measures.

        Raises `UserError` where nothing says how fast its device is.
        """
        if self.config.clients.clock == "measured":
            return {}
        if device:
            return device[1].known()
        capacity = self._declared
        if self.settings.keys() & set(OVERRIDES):  # which hide the rest
            rest = {key: value for key, value in self.settings.items() if key not in OVERRIDES}
            capacity = parse_capacity(rest)
        if capacity is None or capacity.compute is None:
            remedy = "set clients.devices" if self.virtual else "declare compute= on the device, or capacity=auto"
            raise UserError(f"clients.clock is 'simulated', but nothing says how fast this client computes: {remedy}")
        return Profile(capacity.compute, capacity.bandwidth or math.inf).known()

    def _choose(self, client: int, samples: int, device: tuple[str, Profile] | None) -> Choice:
        section = self.config.clients
        if self._declared is not None:
            return self.parts.choose(self._declared, self.config, samples, client)
        if section.mix == "auto" and device:
            choice = self.parts.choose(device[1].capacity, self.config, samples, client)
            return replace(choice, reason=f"{device[0]}: {choice.reason}")
        numbers = self.parts.numbers(self.config)
        place = mix_depth(section.mix, client, section.count, len(numbers))
        return Choice(numbers[place - 1], f"mix {section.mix}")

    @cached_property
    def _population(self) -> Population:
        return Population(self.config.data, self.config.clients.count, self.config.run.seed)


@lru_cache(maxsize=8)
def _read_config(text: str) -> RunConfig:
    flat = json.loads(text)
    return load_config(flat, find_method(flat.get("run.strategy", RunConfig().run.strategy)).settings)


@lru_cache(maxsize=2)
def _division(method: str, spec: str, seed: int, costs: str = "") -> Division:
    return find_method(method).parts.divide(spec, seed, costs)


@lru_cache(maxsize=16)
def _initial(method: str, spec: str, seed: int, part: int) -> StateDict:
    state: StateDict = _division(method, spec, seed).take(part).state_dict()
    return state


@lru_cache(maxsize=16)
def _model(method: str, spec: str, seed: int, part: int, device: torch.device) -> FlatModel[EarlyExitNetwork]:
    return FlatModel(cast(EarlyExitNetwork, _division(method, spec, seed).take(part)).to(device))

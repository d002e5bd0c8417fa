"""Hetero-SplitEE (Oda et al., arXiv 2512.09313): split training where every device has its own cut.

A round:

1. Sample clients; open the inbox for their streams; send them address, token and round in Flower's messages.
2. Clients train their first layers with an exit of their own and stream features and labels (`client.py`).
3. Meanwhile one thread trains the layers after each cut on what arrives, in a fixed order (`trainer.py`):
   sequential: one model for all; averaging: a copy per client.
4. When all clients have answered: average the copies and, where the user asks for it, the devices' parts.

Devices' parts stay with their clients; Flower's messages carry no weights unless they are averaged.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from logging import WARNING
from threading import Lock
from typing import Any

import torch
from flwr.supercore import log

from common import paths
from common.config import RunConfig
from common.data.batches import batch_count
from common.errors import UserError
from common.messages.protocol import ClientReport
from common.rpc.channels import Limits
from common.rpc.streams import Served, served
from common.sections.stream import StreamSettings
from common.storage.client_store import ClientStore
from common.weights.flat import FlatState, StateDict
from common.weights.layers import average_layers
from strategies.engine.strategy import EarlyExitStrategy
from strategies.hetero_splitee.client import ADDRESS, CERTIFICATE, FRESH, MESSAGE_BYTES, TOKEN, VERSION, module_of
from strategies.hetero_splitee.cut import BYTES
from strategies.hetero_splitee.inbox import Inbox, OpenRound
from strategies.hetero_splitee.learner import Sgd, device_part, statistics
from strategies.hetero_splitee.remote import OVERHEAD
from strategies.hetero_splitee.schedule import order
from strategies.hetero_splitee.server_model import make_server_model
from strategies.hetero_splitee.service import Expected, SplitService
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import SERVER_HALF
from strategies.hetero_splitee.trainer import Trained, Trainer
from strategies.method import Effort, Method, RoundUpdate, Setup


def travels(config: RunConfig, key: str) -> bool:
    """Return whether devices upload their parts: only to be averaged."""
    settings = config.of(SplitEESettings)
    return settings.sync != "none" or settings.scope == "global"


def apart(config: RunConfig) -> bool:
    """Return whether every device's layers are needed by themselves: to join the average of the server's copies."""
    return config.of(SplitEESettings).scope == "global"


class HeteroSplitEE(EarlyExitStrategy):
    """Train the layers after the cuts on streams."""

    def __init__(self, method: Method, setup: Setup) -> None:
        super().__init__(method, setup)
        self.settings = self.config.of(SplitEESettings)
        self.streams = self.config.of(StreamSettings)
        if self.config.network.pretrained and not travels(self.config, ""):
            raise UserError("devices' layers do not travel here, so set splitee.client-sync with network.pretrained")
        section, period = self.config.clients, self.settings.period
        if period > 1 and self.settings.sync != "none" and section.per_round < section.count:
            raise UserError(
                f"splitee.period is {period}, but clients.per-round is {section.per_round} of {section.count} clients: "
                "an average of this round's devices would overwrite what others trained since the last one; set "
                f"splitee.period=1 or clients.per-round={section.count}"
            )
        store = ClientStore(paths.store_root(self.config.clients.store), f"{self.config.run.name}.server")
        self.server = make_server_model(self.network, self.settings, self.device, store)
        self.devices: dict[int, StateDict] = {}  # cut -> the devices' average, where they are averaged
        self.averaged: dict[int, dict[str, int]] = {}  # cut -> unit or exit -> round of that average
        self.shapes = self._shapes()
        normalises = any(isinstance(module, torch.nn.BatchNorm2d) for module in self.network.modules())
        self.least = min(2, self.config.train.batch_size) if normalises else 1  # samples that a client needs
        self.stream: Served | None = None  # while it is served
        self.turn = Lock()  # one thread at a time changes the server's model or asks it
        self.trainer: Trainer | None = None

    def prepare(self, round_: int, clients: Sequence[ClientReport]) -> None:
        """Open the round's inbox and begin to train on what arrives."""
        section, cuts = self.config.train, {c.client: self.part(c) for c in clients}
        opened = OpenRound(
            self.config.run.name, round_, round_ - 1, cuts, self.streams.window, self.settings.gradient == "return"
        )
        inbox = Inbox(opened)
        with self.turn:
            self.server.open_round(round_, cuts, Sgd.of_round(self.settings, section, round_), section.epochs)
        self.service.open(inbox)
        number = {c.client: batch_count(c.num_examples, section.batch_size) for c in clients}
        queue = order(number, self.settings.turns, self.config.run.seed, round_)
        self.trainer = Trainer(
            self.server, inbox, {client: number[client] for client in queue},
            section.epochs, self.settings.granularity, together=self.settings.mode == "averaging",
            patience=self.streams.patience, num_threads=self.config.server.threads,
            seed=self.config.run.seed, device=self.device, turn=self.turn,
        ).start()  # fmt: skip

    def round_values(self, round_: int) -> Mapping[str, Any]:
        """Return where the clients stream to."""
        if self.stream is None:
            return {}
        return {
            ADDRESS: self.stream.address, TOKEN: self.stream.token, CERTIFICATE: self.stream.certificate,
            MESSAGE_BYTES: self.message_bytes, VERSION: round_ - 1,
        }  # fmt: skip

    def client_values(self, client: ClientReport) -> Mapping[str, Any]:
        """Return the units and exits of which the devices' average is newer than the client's own."""
        own, averaged = self.committed.get(client.client, 0), self.averaged.get(self.part(client), {})
        return {FRESH: [module for module, round_ in averaged.items() if round_ >= own]}

    def effort(self, client: ClientReport) -> Effort:
        """Count the streamed features and labels, and the gradients, each of which is waited for."""
        effort, settings, section = super().effort(client), self.settings, self.config.train
        samples, label = client.num_examples * section.epochs, 1 if self.network.num_classes <= 128 else 2  # a varint's
        features = samples * torch.Size(self.shapes[self.part(client)]).numel() * BYTES[settings.coding]
        streamed = replace(effort, up=features + label * samples)
        if settings.gradient == "stop":
            return streamed
        batches = batch_count(client.num_examples, section.batch_size) * section.epochs
        return replace(streamed, down=features, exchanges=effort.exchanges + batches)

    def eligible(self, client: ClientReport) -> bool:
        """Return whether the client has samples enough for the server's layers."""
        return super().eligible(client) and client.num_examples >= self.least

    def lost(self, client: int) -> None:
        """Stop waiting for the batches of a client that has failed."""
        if self.trainer is not None:
            self.trainer.inbox.abandon(client)

    def part_state(self, part: int) -> FlatState:
        """Return the average of the devices' parts at a cut; before the first one, the seed's weights."""
        own = self.parts.take(part).state_dict() | self.devices.get(part, {})
        return FlatState.of({key: own[key] for key in self.layouts[part].keys})

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Finish the training, average what is due and report what did not come."""
        assert self.trainer is not None
        trained = self.trainer.finish()
        held = self.server.held_bytes()
        self.service.close()
        for client, missing in trained.missing.items():
            if missing:
                log(WARNING, "round %d: client %d: %d batches are missing, %d came and counted once",
                    round_, client, missing, trained.batches[client])  # fmt: skip
        self._close_round(update, trained)
        if self.settings.aggregates(round_):
            self._average_devices(round_, update)
        self.model |= {key: value for key, value in self.server.model().items() if key in self.model}
        number = sum(trained.batches.values())
        return {
            "server_loss": trained.loss / number if number else 0.0, "batches": number,
            "missing": sum(trained.missing.values()), "server_seconds": trained.seconds, "server_bytes": held,
        }  # fmt: skip

    def final_model(self) -> StateDict:
        """Return the whole network as the server has it, with the statistics of every cut and client that has its own.

        With `splitee.prior="own"` the clients' label counts are beside it.

        Units that it has never trained or averaged are the seed's.
        """
        return self.server.labels().beside(self.server.statistics().beside(self.model))

    def final_values(self) -> Mapping[str, Any]:
        """Say that the stored model is the server's half."""
        return {SERVER_HALF: True}

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return the server's model and the devices' average."""
        tensors, values = self.server.state_dict()
        # cloned: cuts share their averages' tensors, which a checkpoint's file format refuses
        own = {f"device.{cut}.{k}": value.clone() for cut, state in self.devices.items() for k, value in state.items()}
        averaged = {str(cut): rounds for cut, rounds in self.averaged.items()}
        return {f"server.{k}": v for k, v in tensors.items()} | own, {"server": values, "averaged": averaged}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        server = {k.removeprefix("server."): v for k, v in tensors.items() if k.startswith("server.")}
        self.server.load_state_dict(server, values["server"])
        self.averaged, self.devices = {int(cut): dict(rounds) for cut, rounds in values["averaged"].items()}, {}
        for key, value in tensors.items():
            if key.startswith("device."):
                _, cut, name = key.split(".", 2)
                self.devices.setdefault(int(cut), {})[name] = value

    def _close_round(self, update: RoundUpdate, trained: Trained) -> None:
        """Close the server's round: what a client that failed had sent counts as far as it came."""
        epochs = self.config.train.epochs
        samples = {c: max(1, number // epochs) for c, number in trained.samples.items() if number}
        parts: dict[int, StateDict] = {}
        if self.settings.scope == "global":
            parts = {client: state.state_dict() for client, state in update.states.items()}
            samples = {client: number for client, number in samples.items() if client in parts}
        with self.turn:
            self.server.close_round(samples, parts)
            self.server.labels().close_round(update.results)

    def _average_devices(self, round_: int, update: RoundUpdate) -> None:
        averages = {cut: tier.state for cut, tier in update.tiers.items()}
        if self.settings.sync == "none" and self.settings.scope == "server":
            return
        if self.settings.sync != "same_cut":
            weights = {cut: float(tier.weight) for cut, tier in update.tiers.items()}
            by_layer = self.server.model() if self.apart else average_layers(averages, weights)
            averages = {cut: self._part_of(by_layer, cut, averages) for cut in self.tiers}
        for cut, average in averages.items():
            self.devices.setdefault(cut, {}).update(average)
            self.averaged.setdefault(cut, {}).update(dict.fromkeys(map(module_of, average), round_))

    def _part_of(self, by_layer: StateDict, cut: int, averages: Mapping[int, StateDict]) -> StateDict:
        """Return a cut's part of an average over cuts; running statistics are the cut's, unless all cuts share them."""
        part = {key: by_layer[key] for key in self.layouts[cut].keys if key in by_layer}
        if self.settings.statistics == "shared":
            return part
        known = averages.get(cut, self.devices.get(cut, {}))
        return part | {
            key: known[key] for key in statistics(device_part(self.network, cut)) if key in part and key in known
        }

    def _shapes(self) -> dict[int, tuple[int, ...]]:
        """Return the shape of one sample's features at every cut that is offered."""
        shapes, network = {}, self.network.eval()
        with torch.no_grad():
            for cut in self.tiers:
                shapes[cut] = tuple(network.features_at(network.example(1), cut).shape[1:])
        return shapes

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """Serve the streams while the rounds run."""
        section, streams = self.config.clients, self.streams
        most = self.config.train.batch_size + 1  # batches are of equal size, so one may hold a sample more
        values = most * max(torch.Size(shape).numel() for shape in self.shapes.values())
        self.message_bytes = 4 * values + 16 * most + OVERHEAD
        expected = Expected(self.config.run.name, self.shapes, self.network.num_classes, most, self.least)
        # all clients may evaluate at once
        self.service = SplitService(
            expected, self.server.logits, self.settings.coding, offloads=section.count + 8, turn=self.turn
        )
        limits = Limits(self.message_bytes, calls=2 * section.count + 16)
        with served(self.service.register, streams, streams.port, limits, "streams") as stream:
            self.stream = stream
            try:
                yield
            finally:
                if self.trainer is not None:
                    self.trainer.stop()
                self.service.close()
                self.stream = None

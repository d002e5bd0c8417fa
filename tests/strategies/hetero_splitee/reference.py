"""The oracle of the tests: the whole method in one process, without a network, streams or threads.

It uses the app's steps and models, but its own plain loop. A run must give the same weights, bit for bit.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.config import RunConfig
from common.data.batches import batches
from common.networks import EarlyExitNetwork
from common.seeding import generator
from common.storage.client_store import ClientStore
from common.weights.flat import StateDict
from common.weights.layers import average_layers
from strategies.hetero_splitee.client_step import finish, forward, local_step
from strategies.hetero_splitee.learner import Learner, Sgd, device_part, statistics
from strategies.hetero_splitee.prior import log_prior
from strategies.hetero_splitee.schedule import order, turns
from strategies.hetero_splitee.server_model import ServerModel, make_server_model
from strategies.hetero_splitee.settings import SplitEESettings


@dataclass(frozen=True)
class Client:
    """A client's data and cut."""

    cut: int
    x: Tensor  # (N, C, H, W), normalised
    y: Tensor  # (N,) int64


@dataclass
class Losses:
    """A round's losses."""

    device: dict[int, list[float]] = field(default_factory=dict)  # by client, per batch in the order of training
    server: dict[int, list[float]] = field(default_factory=dict)  # likewise


class Reference:
    """Devices and server side by side, in the order (round, batch, client)."""

    def __init__(
        self, network: EarlyExitNetwork, clients: Mapping[int, Client], config: RunConfig, store: ClientStore
    ) -> None:
        """Every client takes part in every round; devices keep their momentum from round to round."""
        self.clients, self.config = clients, config
        self.settings = config.of(SplitEESettings)
        cpu = torch.device("cpu")
        self.devices = {c: Learner.copy_of(device_part(network, clients[c].cut), cpu) for c in sorted(clients)}
        own = self.settings.prior == "own"
        self.priors = {
            c: log_prior(torch.bincount(client.y, minlength=network.num_classes)) if own else None
            for c, client in clients.items()
        }
        self.server: ServerModel = make_server_model(network, self.settings, cpu, store)

    def run_round(self, round_: int) -> Losses:
        """Train one round, counted from 1."""
        train, losses = self.config.train, Losses({c: [] for c in self.devices}, {c: [] for c in self.devices})
        sgd = Sgd(train.lr * train.lr_decay ** (round_ - 1), train.momentum, train.weight_decay)
        self.server.open_round(
            round_,
            {c: client.cut for c, client in self.clients.items()},
            Sgd.of_round(self.settings, train, round_),
            train.epochs,
        )
        dealt = {c: self._batches(round_, c) for c in self.devices}
        waiting = {c: iter(lists) for c, lists in dealt.items()}
        per_epoch = {
            c: len(dealt[c]) // train.epochs if train.epochs else 0
            for c in order(dealt, self.settings.turns, self.config.run.seed, round_)
        }
        for turn in turns(per_epoch, train.epochs, self.settings.granularity):
            self._train({c: next(waiting[c]) for c in turn}, sgd, losses)
        self._finish_round(round_)
        return losses

    def _train(self, rows: Mapping[int, Tensor], sgd: Sgd, losses: Losses) -> None:
        """Train one batch per client."""
        x = {c: self.clients[c].x[batch] for c, batch in rows.items()}
        y = {c: self.clients[c].y[batch] for c, batch in rows.items()}
        if self.settings.gradient == "stop":
            sent = {}
            for c in rows:
                sent[c], loss = local_step(self.devices[c], sgd, x[c], y[c], self.priors[c])
                losses.device[c].append(float(loss))
            answers = self.server.step_many({c: (sent[c], y[c]) for c in rows})
        else:
            outputs = {c: forward(self.devices[c], x[c]) for c in rows}
            answers = self.server.step_many({c: (outputs[c].trunk.detach(), y[c]) for c in rows})
            for c, answer in answers.items():
                assert answer.gradient is not None
                weight, prior = self.settings.exit_weight, self.priors[c]
                loss = finish(self.devices[c], sgd, outputs[c], y[c], answer.gradient, weight, prior)
                losses.device[c].append(float(loss))
        for c, answer in answers.items():
            losses.server[c].append(float(answer.loss))

    def _finish_round(self, round_: int) -> None:
        samples = {c: len(client.y) for c, client in self.clients.items()}
        cuts = {c: client.cut for c, client in self.clients.items()}
        parts: dict[int, StateDict] = {c: device.network.state_dict() for c, device in self.devices.items()}
        self.server.close_round(samples, parts if self.settings.scope == "global" else {})
        self.server.labels().close_round(samples)
        if not self.settings.aggregates(round_):
            return
        how = "same_cut" if self.settings.scope == "global" else self.settings.sync
        if how == "none":
            return
        running = {key for part in self.devices.values() for key in statistics(part.network)}
        by_cut = synchronised(parts, cuts, samples, how, running if self.settings.statistics != "shared" else ())
        for c, device in self.devices.items():
            average = by_cut[cuts[c]]
            if self.settings.scope == "global":
                apart = running if self.settings.statistics != "shared" else set()
                average |= {key: value for key, value in self.server.model().items() if key not in apart}
            if self.settings.statistics == "own":
                average = {key: value for key, value in average.items() if key not in running}
            device.load_state_dict(average)

    def _batches(self, round_: int, client: int) -> list[Tensor]:
        section = self.config.train
        source = generator(self.config.run.seed, "batches", round_, client)
        size, number = len(self.clients[client].y), section.epochs
        return [batch for _ in range(number) for batch in batches(size, section.batch_size, source)]


def synchronised(
    devices: Mapping[int, StateDict],
    cuts: Mapping[int, int],
    samples: Mapping[int, int],
    how: str,
    by_cut_only: Collection[str] = (),
) -> dict[int, StateDict]:
    """Return by cut the part with which every device of this cut continues.

    Args:
        devices: each client's units and its exit at the cut, by key.
        cuts: each client's cut.
        samples: n_i, each client's weight, above 0.
        how: "same_cut": devices with the same cut are averaged; "prefix": each unit is averaged over all devices
            that hold it, an exit over those with the same cut.
        by_cut_only: keys that are averaged over devices with the same cut in any case: running statistics.
    """
    groups = {cut: {c: devices[c] for c in devices if cuts[c] == cut} for cut in sorted({cuts[c] for c in devices})}
    same_cut = {cut: average_layers(group, samples) for cut, group in groups.items()}
    if how == "same_cut":
        return same_cut
    average = average_layers(devices, samples)  # an exit's key names its cut
    return {
        cut: {key: own[key] if key in by_cut_only else average[key] for key in own} for cut, own in same_cut.items()
    }

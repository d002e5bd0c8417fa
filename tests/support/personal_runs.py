"""Helpers for tests of personalised methods: recorded messages, hand-made clients, stored client states."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import Message
from torch import Tensor

from client.app import app as real_app
from common.data.batches import batches
from common.data.clients import ClientData, Population, shared_data
from common.messages import protocol
from common.networks import EarlyExitNetwork, build
from common.seeding import generator
from common.storage.files import read_tensors
from common.storage.model_file import FILE
from common.weights.flat import FlatModel, StateDict
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Job

CPU = torch.device("cpu")
HOME = {"clients.per-node": 1}
NODES = [{"partition-id": p} for p in range(6)]
DEEP = {"clients.mix": "0,0,1"}  # every client trains the whole network


class Recorder:
    """The real ClientApp; records every train order and its reply."""

    def __init__(self) -> None:
        self.sent: list[tuple[protocol.Order, protocol.Payload]] = []
        self.replies: list[protocol.Reply] = []

    def __call__(self, message: Message, context: Any) -> Message:
        answer: Message = real_app(message, context)
        if message.metadata.message_type == protocol.TRAIN:
            self.sent.append(protocol.unpack_order(message.content))
            self.replies.append(protocol.unpack_reply(answer.content))
        return answer

    def down(self) -> set[str]:
        """Return the keys of all weights that clients received."""
        return {key for _, payload in self.sent for state in payload.states.values() for key in state.layout.keys}

    def up(self) -> set[str]:
        """Return the keys of all weights that clients sent."""
        layouts = [part.layout for r in self.replies for part in [*r.folds.values(), *r.lone.values()]]
        return {key for layout in layouts for key in layout.keys}

    def uploads(self, round_: int) -> dict[int, dict[str, Any]]:
        """Return the arrays that each client sent in a round, by client."""
        pairs = zip(self.sent, self.replies, strict=True)
        return {c: arrays for (o, _), r in pairs if o.round == round_ for c, arrays in r.client_arrays.items()}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether keys and bits are equal."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def heads(state: Mapping[str, Tensor]) -> StateDict:
    """Return the weights of the exits."""
    return {key: value for key, value in state.items() if key.startswith("exits.")}


def trunk(state: Mapping[str, Tensor]) -> StateDict:
    """Return all weights except those of the exits."""
    return {key: value for key, value in state.items() if not key.startswith("exits.")}


def seeded(strategy: EarlyExitStrategy) -> StateDict:
    """Return the initial weights of the run's seed."""
    return build(strategy.spec, strategy.config.run.seed).state_dict()


def folder(strategy: EarlyExitStrategy) -> Path:
    """Return the folder in which the run's clients store their states."""
    return Path(strategy.config.clients.store) / strategy.config.run.name


def kept(strategy: EarlyExitStrategy, client: int) -> StateDict:
    """Return the weights that a client stored in its last committed round."""
    file = folder(strategy) / f"client-{client:06d}" / f"round-{strategy.committed[client]:06d}.safetensors"
    tensors = read_tensors(file)[0]
    return {key.removeprefix("own."): value for key, value in tensors.items() if key.startswith("own.")}


def delivered(strategy: EarlyExitStrategy, client: int) -> StateDict:
    """Return the weights of a client's final model."""
    return read_tensors(folder(strategy) / f"client-{client:06d}" / FILE)[0]


def own_data(strategy: EarlyExitStrategy, client: int) -> ClientData:
    """Return a virtual client's samples."""
    config = strategy.config
    return shared_data(Population(config.data, config.clients.count, config.run.seed), client, CPU)


def make_job(strategy: EarlyExitStrategy, client: int, round_: int = 1, **changes: Any) -> Job:
    """Return a client's job with its own model, without a node."""
    report_depth = changes.pop("depth", len(strategy.tiers))
    model = FlatModel(build(strategy.spec, strategy.config.run.seed).prefix(report_depth))
    method = {"lr": strategy.lr(round_)}
    return Job(
        client, report_depth, round_, strategy.config, model, CPU, lambda: own_data(strategy, client), method,
        travels=lambda key: key in strategy.layouts[report_depth].keys, initial=lambda: seeded(strategy), **changes,
    )  # fmt: skip


def sgd(
    strategy: EarlyExitStrategy, network: EarlyExitNetwork, client: int, round_: int, epochs: int,
    purpose: str = "batches", part: str = "", pull: float = 0.0, anchor: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Train a reference with torch's optimiser, on the parameters whose names begin with `part`."""
    section, data = strategy.config.train, own_data(strategy, client)
    options = {"lr": strategy.lr(round_), "momentum": section.momentum, "weight_decay": section.weight_decay}
    chosen = [p for name, p in network.named_parameters() if name.startswith(part)]
    optimizer = torch.optim.SGD(chosen, **options)  # type: ignore[arg-type]
    source = generator(strategy.config.run.seed, purpose, round_, client)
    network.train()
    for _ in range(epochs):
        for batch in batches(len(data.y), section.batch_size, source):
            network.zero_grad()
            loss = torch.stack([torch.nn.functional.cross_entropy(z, data.y[batch]) for z in network(data.x[batch])])
            term = loss.new_zeros(())
            if anchor is not None:
                gaps = [(p - anchor[name]).square().sum() for name, p in network.named_parameters()]
                term = pull / 2 * torch.stack(gaps).sum()
            (loss.sum() + term).backward()
            optimizer.step()


def close(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Return whether keys are equal, and numbers up to the rounding of another summation order."""
    return one.keys() == two.keys() and all(torch.allclose(one[k], two[k], rtol=1e-4, atol=2e-6) for k in one)

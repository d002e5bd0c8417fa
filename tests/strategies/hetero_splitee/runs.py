"""Whole runs of split training: their results, and the same run by the reference, without a network."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from common.config import Value
from common.data.clients import Population, shared_data
from common.flower.local_grid import LocalGrid
from common.networks import build
from common.rpc import streams
from common.storage.client_store import ClientState, ClientStore
from common.weights.flat import StateDict
from strategies.engine.strategy import EarlyExitStrategy
from strategies.hetero_splitee.client import SplitTraining
from strategies.hetero_splitee.learner import MOMENTUM
from strategies.method import Job
from tests.strategies.hetero_splitee.reference import Client, Reference

# six clients of three cuts, four batches each
SPLIT: dict[str, Value] = {
    "run.strategy": "hetero_splitee", "network.name": "resnet_slim", "network.width": 2, "splitee.cuts": "1,2,4",
    "splitee.aggregate-scope": "server", "splitee.client-sync": "none",
    "data.limit": 240, "data.client-test": 0.25, "train.batch-size": 8,
    "stream.patience": 120.0, "round.deadline": 280.0,  # no client is late on a busy machine
}  # fmt: skip
GRID = partial(LocalGrid, concurrent=True)  # nodes of one server stream at the same time
NODES = [{"partition-id": p} for p in range(6)]


def same(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    """Return whether both have the same keys and the same bits."""
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def made_tokens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the token of every run from now on."""
    tokens, make = list[str](), streams.new_token

    def new_token() -> str:
        tokens.append(make())
        return tokens[-1]

    monkeypatch.setattr(streams, "new_token", new_token)
    return tokens


def kept(strategy: EarlyExitStrategy) -> StateDict:
    """Return what every client and the server's store keep, by "client." or "copy.", the client and the key."""
    found: StateDict = {}
    root, name = Path(strategy.config.clients.store), strategy.config.run.name
    for store, rounds in (
        (ClientStore(root, name), strategy.committed),
        (ClientStore(root, f"{name}.server"), {c: k.round for c, k in getattr(strategy.server, "kept", {}).items()}),
    ):
        for client, round_ in rounds.items():
            side = "copy" if store.folder.name.endswith(".server") else "client"
            found |= {f"{side}.{client}.{k}": value for k, value in store.load(client, round_).tensors.items()}
    return found


def everything(strategy: EarlyExitStrategy) -> StateDict:
    """Return all tensors of a finished run: model, server with momenta, clients."""
    state, _ = strategy.state_dict()
    return {**{f"model.{k}": v for k, v in strategy.model.items()}, **state, **kept(strategy)}


def told(run: Any) -> list[dict[str, Any]]:
    """Return the records of the rounds, without values that depend on the clock or on which node hosts a client."""
    return [
        {"terms": {k: v for k, v in r.terms.items() if k != "server_seconds"}, "clients": r.clients,
         "accuracy": r.client_accuracy, "metrics": r.client_metrics, "failures": r.failures}
        for r in run.records
    ]  # fmt: skip


def reference(strategy: EarlyExitStrategy, folder: Path, rounds: int) -> Reference:
    """Return the same run by the reference: with the run's weights, images, cuts and seeds."""
    config = strategy.config
    population = Population(config.data, config.clients.count, config.run.seed)
    cuts = {client: report.part for client, report in sorted(strategy.roster.reports.items())}
    data = {client: shared_data(population, client, torch.device("cpu")) for client in cuts}
    clients = {client: Client(cut, data[client].x, data[client].y) for client, cut in cuts.items()}
    oracle = Reference(build(strategy.spec, config.run.seed), clients, config, ClientStore(folder, "reference"))
    for round_ in range(1, rounds + 1):
        oracle.run_round(round_)
    return oracle


class Spy:
    """Records every client's part before and after a round's training, by round and client."""

    def __init__(self, monkeypatch: Any) -> None:
        self.before: dict[int, dict[int, StateDict]] = {}
        self.after: dict[int, dict[int, StateDict]] = {}
        load, save = SplitTraining.load, ClientStore.save

        def loading(method: SplitTraining, job: Job, state: Any) -> None:
            load(method, job, state)
            parts = self.before.setdefault(job.round, {})
            if job.client not in parts:  # evaluation comes after training
                parts[job.client] = {key: value.clone() for key, value in job.model.module.state_dict().items()}

        def saving(store: ClientStore, client: int, round_: int, state: ClientState) -> None:
            save(store, client, round_, state)
            if not store.folder.name.endswith(".server"):
                self.after.setdefault(round_, {})[client] = {
                    key: value for key, value in state.tensors.items() if not key.startswith(MOMENTUM)
                }

        monkeypatch.setattr(SplitTraining, "load", loading)
        monkeypatch.setattr(ClientStore, "save", saving)

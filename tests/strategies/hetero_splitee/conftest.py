"""Tiny networks and features for split training."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config import Value
from common.devices import channels_last
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.storage.client_store import ClientStore
from tests.conftest import Run, make_run, small_configuration
from tests.strategies.hetero_splitee.runs import GRID, NODES, SPLIT
from tests.strategies.hetero_splitee.sockets import Bench, until

SLIM = NetworkSpec("resnet_slim", 3, (1, 8, 8), width=2)  # 5 units with batch norm: cuts 1..4
LENET = NetworkSpec("lenet", 3, (1, 8, 8), width=2)  # 3 units without: cuts 1 and 2


@pytest.fixture
def slim() -> EarlyExitNetwork:
    return build(SLIM, seed=1).train()


@pytest.fixture
def lenet() -> EarlyExitNetwork:
    return build(LENET, seed=1).train()


@pytest.fixture
def store(tmp_path: Path) -> ClientStore:
    return ClientStore(tmp_path, "copies")


@pytest.fixture
def batch() -> Callable[..., tuple[Tensor, Tensor]]:
    """Return a maker of features of random images at a cut, as a device in eval mode sends them, and labels."""

    def make(network: EarlyExitNetwork, cut: int, seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        x = torch.randn(size, *network.input_shape, generator=source)
        y = torch.randint(0, network.num_classes, (size,), generator=source)
        was = network.training
        with torch.no_grad():
            features = channels_last(network.eval().features_at(x, cut))
        network.train(was)
        return features, y

    return make


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Return a started bench; at the end it must leave no thread."""
    before = set(threading.enumerate())
    started = Bench()
    started.start()
    yield started
    started.stop()
    until(lambda: set(threading.enumerate()) <= before)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Return a function that gives a finished run, which tests only read: one run for all that ask for the same."""
    runs: dict[str, Run] = {}

    def finished(changes: Mapping[str, Value], on: Sequence[Mapping[str, Any]] = NODES[:2]) -> Run:
        key = json.dumps([changes, on], sort_keys=True)
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            runs[key] = make_run({**small_configuration(folder), **SPLIT, **changes}, on, grid=GRID)
            runs[key].strategy.start(runs[key].grid)
        return runs[key]

    return finished


@pytest.fixture
def split(run_strategy: Callable[..., Run]) -> Callable[..., Run]:
    """Return a function that runs split training to its end; every run has its own name, and so its own store."""
    names = (f"run-{number}" for number in itertools.count())

    def start(
        changes: Mapping[str, Value] | None = None, on: Sequence[Mapping[str, Any]] = NODES[:2], **kwargs: Any
    ) -> Run:
        return run_strategy({**SPLIT, "run.name": next(names), **(changes or {})}, on, **{"grid": GRID, **kwargs})

    return start

"""Fixtures for every test."""

import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from client.app import app
from common.config import Value
from common.flower.local_grid import LocalGrid
from common.plugins import VARIABLE
from strategies.callbacks.base import Callback
from strategies.configuration import read_config
from strategies.engine.rounds import Record
from strategies.engine.strategy import EarlyExitStrategy
from strategies.factory import make_strategy

PROJECT = Path(__file__).resolve().parents[1]
PROCESSES = ("docker", "server", "support")  # folders of tests that start SuperLinks, Ray or hosts of their own


class ByFile(LoadScopeScheduling):
    """Keeps a file's tests in one process, and all tests that start processes in the same one: see `make test`."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "processes" if Path(file).parts[1] in PROCESSES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Return the folder of real image sets (cifar10_tiny, ...), set by EARLYBLOOM_DATA."""
    folder = (PROJECT / os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve()
    if not (folder / "cifar10_tiny").is_dir():
        pytest.skip(f"no image sets in {folder}: set EARLYBLOOM_DATA to the folder that holds cifar10_tiny")
    return folder


@pytest.fixture(scope="session")
def cases_root(data_root: Path) -> Path:
    """Return the folder of small sets that are easily misread, beside the folder of real sets."""
    folder = data_root.parent / "cases"
    if not folder.is_dir():
        pytest.skip(f"no misleading sets in {folder}")
    return folder


@pytest.fixture(scope="session", autouse=True)
def flower_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Put Flower's home into a temporary folder; runs, client states and decoded images are stored beside it."""
    home = tmp_path_factory.mktemp("home") / ".flwr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLWR_HOME", str(home))
        yield home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Compute on one thread, as clients and server do by default, so that references agree to the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """Let Ctrl-C interrupt processes that tests start, even where the tests are a background job, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Make an importable module with this source, and allow it; without a source, only allow its name."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(VARIABLE, "")

    def make(name: str, source: str | None) -> None:
        if source is not None:
            (folder / f"{name}.py").write_text(source)
            importlib.invalidate_caches()
        monkeypatch.setenv(VARIABLE, ",".join(filter(None, [os.environ[VARIABLE], name])))
        monkeypatch.delitem(sys.modules, name, raising=False)

    return make


@pytest.fixture
def flower_log() -> Iterator[list[str]]:
    """Yield the messages of Flower's logger."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@dataclass
class Run(Callback):
    """A run on the in-process grid and its records."""

    strategy: EarlyExitStrategy
    grid: Grid
    records: list[Record] = field(default_factory=list)
    failure: str | None = None
    result: Result = field(default_factory=Result)

    def on_round(self, strategy: EarlyExitStrategy, record: Record) -> None:
        self.records.append(record)

    def on_end(self, strategy: EarlyExitStrategy, failure: str) -> None:
        self.failure = failure


def small_configuration(folder: Path) -> dict[str, Value]:
    """Return a configuration that trains in milliseconds: LeNet with three tiers on a few embedded digits."""
    return {
        "run.name": "test", "run.strategy": "eefl", "run.rounds": 2,
        "clients.count": 6, "clients.per-round": 6, "clients.mix": "0.34,0.33,0.33", "clients.device": "cpu",
        "clients.store": str(folder / "clients"),
        "train.batch-size": 16, "network.name": "lenet", "network.width": 3, "data.limit": 240,
        "server.device": "cpu", "server.evaluate-every": 0, "round.deadline": 60.0,
    }  # fmt: skip


def make_run(
    settings: Mapping[str, Value], nodes: Sequence[Mapping[str, Any]], app: Any = app, grid: Any = LocalGrid
) -> Run:
    """Make a strategy and a grid."""
    run = Run(make_strategy(read_config(settings)), grid(app, nodes))
    run.strategy.callbacks = [run]
    return run


@pytest.fixture
def flat(tmp_path: Path) -> dict[str, Value]:
    """Return a test's small configuration."""
    return small_configuration(tmp_path)


@pytest.fixture
def prepare_run(flat: dict[str, Value]) -> Callable[..., Run]:
    """Make a strategy and a grid; `changes`: configuration keys, `nodes`: one node configuration each."""

    def prepare(
        changes: Mapping[str, Value] | None = None,
        nodes: Sequence[Mapping[str, Any]] = ({"partition-id": 0},),
        app: Any = app,
        grid: type[LocalGrid] = LocalGrid,
    ) -> Run:
        return make_run({**flat, **(changes or {})}, nodes, app, grid)

    return prepare


@pytest.fixture
def run_strategy(prepare_run: Callable[..., Run]) -> Callable[..., Run]:
    """Make a run as `prepare_run` does and run it to its end."""

    def start(*args: Any, timeout: float | None = None, **kwargs: Any) -> Run:
        run = prepare_run(*args, **kwargs)
        run.result = run.strategy.start(run.grid, timeout=timeout)
        return run

    return start

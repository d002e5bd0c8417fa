"""Prepares runs and runs their rounds; importing it imports torch."""

from collections.abc import Mapping
from pathlib import Path

from flwr.serverapp import Grid

from common import logs, paths, plugins
from common.config import RunConfig, Value, replace
from common.devices import keep_memory, set_kernels
from common.storage.run_files import default_name
from server.rounds.grid import streaming
from strategies.callbacks.base import Callback
from strategies.callbacks.progress import Progress
from strategies.callbacks.prometheus import Prometheus
from strategies.callbacks.report import Report
from strategies.callbacks.run_folder import RunFolder
from strategies.callbacks.trackers import make_trackers
from strategies.configuration import read_config, read_resumed, unread
from strategies.engine.strategy import EarlyExitStrategy
from strategies.factory import make_strategy, summarise


def start(strategy: EarlyExitStrategy, grid: Grid) -> None:
    """Run all rounds of a prepared strategy."""
    logs.use(strategy.config.run.log_format)
    with (
        logs.context(run=strategy.config.run.name, node="server", everywhere=True),
        streaming(grid, strategy.config) as rounds,
    ):
        strategy.start(grid=rounds)


def prepare(run_config: Mapping[str, Value]) -> EarlyExitStrategy:
    """Return the strategy of a new or resumed run, with its callbacks.

    Raises `UserError` before anything starts if the configuration, the data or the run folder is unusable.
    """
    config = read_config(run_config, unread)
    keep_memory()
    if config.run.resume:
        folder, stored = RunFolder.reopen(Path(config.run.resume))
        config = read_resumed(stored, folder.folder)
        _check_plugins(config)
        folder.check_data(summarise(config))
        strategy = make_strategy(config)
        observers = _observers(strategy.config)
        folder.restore(strategy)
    else:
        config = _named(config)
        _check_plugins(config)
        strategy, observers = make_strategy(config), _observers(config)
        folder = RunFolder.create(paths.runs_root(config.run.root), config)
    set_kernels(fast=strategy.config.run.fast)
    strategy.callbacks = [*_callbacks(strategy.config, folder), *observers]
    return strategy


def _check_plugins(config: RunConfig) -> None:
    plugins.check({"network.name": config.network.name, "data.name": config.data.name}, "the server")


def _named(config: RunConfig) -> RunConfig:
    return replace(config, run={"name": config.run.name or default_name(config.run.strategy)})


def _callbacks(config: RunConfig, folder: RunFolder) -> list[Callback]:
    return [Progress(), folder, Report(folder.folder), *make_trackers(config.run.trackers, folder.folder)]


def _observers(config: RunConfig) -> list[Callback]:
    section = config.run
    return [Prometheus(section.metrics_host, section.metrics_port)] if section.metrics_port else []

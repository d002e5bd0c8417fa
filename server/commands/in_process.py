"""Run the app in this process: no workers have to start, and clients train one after another."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.flower.local_grid import LocalGrid
from server import execution
from server.commands.launch import COMPLETED, FAILED, Outcome, commit, run_folder
from server.simulation import client_app


def simulate_here(overrides: Mapping[str, Any], root: Path) -> Outcome:
    """Run a simulation and wait for its end; the results have the same bits as those of `simulate`.

    `overrides` are configuration keys, with `run.name` unless a run is resumed.
    """
    folder = run_folder(overrides, root)
    try:
        strategy = execution.prepare({"run.root": str(root), "run.commit": commit(), **overrides})
        # a client that streams needs the server to go on meanwhile
        grid = LocalGrid(client_app(), _nodes(strategy.config), concurrent=strategy.method.interleaved)
        execution.start(strategy, grid)
    except Exception as error:  # as Flower ends a run, and the next one of a comparison starts
        return Outcome(folder, FAILED, f"{type(error).__name__}: {error}")
    return Outcome(folder, COMPLETED, "")


def _nodes(config: RunConfig) -> list[dict[str, int]]:
    """Return the node configurations: one node, or as many as it takes to host all clients."""
    count = -(-config.clients.count // config.clients.per_node) if config.clients.per_node else 1
    return [{"partition-id": number, "num-partitions": count} for number in range(count)]

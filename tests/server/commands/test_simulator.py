"""How many workers a command's runs have, and whether they share one Ray."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.data import support
from common.errors import UserError
from server.commands import cluster, gpus, simulator

CORES = os.cpu_count() or 1


@pytest.fixture
def heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Start no Ray: the list has the workers of the one that would start."""
    found: list[int] = []

    @contextmanager
    def ray_head(home: Path, workers: int) -> Iterator[dict[str, str]]:
        found.append(workers)
        yield {"RAY_ADDRESS": "joined"} if workers else {}

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    monkeypatch.setenv("RAY_ADDRESS", cluster.LOCAL)
    monkeypatch.setattr(simulator, "ray_head", ray_head)
    monkeypatch.setattr(gpus, "visible", lambda: 1)
    return found


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    simulator.add_resources(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    ("words", "at_once", "workers", "head"),
    [
        ((), 1, CORES, True), (("--workers", "3"), 1, 3, True), (("--workers", "9", "--gpus", "0.25"), 1, 4, True),
        ((), 2, max(1, CORES // 2), False), (("--workers", "3"), 2, 3, False),
        (("--ray", "10.0.0.1:6379"), 1, 0, False), (("--ray", "10.0.0.1:6379", "--workers", "3"), 1, 3, False),
    ],
)  # fmt: skip
def test_runs_one_after_another_share_a_ray(heads, words, at_once, workers, head):
    with simulator.simulator(options(*words), at_once) as made:
        assert (made.workers, bool(made.ray), made.here) == (workers, head, "--ray" not in words)
    assert heads == [workers if head else 0]


@pytest.mark.parametrize(
    ("own", "address", "store"),
    [
        ({"run.root": "/runs"}, cluster.LOCAL, "/runs/.cache/clients"), ({}, cluster.LOCAL, None),
        ({"run.root": "/runs", "clients.store": "/kept"}, cluster.LOCAL, "/kept"),
        ({"run.root": "/runs"}, "10.0.0.1:6379", None), ({"run.resume": "/runs/test"}, cluster.LOCAL, None),
    ],
)  # fmt: skip
def test_clients_keep_their_states_below_the_runs_own_root(monkeypatch, own, address, store):
    stores = []
    monkeypatch.setattr(simulator, "simulate", lambda values, *_, **__: stores.append(values.get("clients.store")))
    simulator.Simulator({"RAY_ADDRESS": address}).run(own, Path("/home/runs"))
    assert stores == [store]


def test_empty_address_is_no_cluster(heads, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "")
    with simulator.simulator(options()) as made:
        assert (bool(made.ray), made.here) == (True, True)


def test_run_in_this_process_has_no_workers(heads):
    with simulator.simulator(options("--in-process")) as made:
        assert made.env is None
    assert not heads
    with (
        pytest.raises(UserError, match="remove --workers"),
        simulator.simulator(options("--in-process", "--gpus", "0")),
    ):
        pass


def test_missing_ray_is_named(heads, monkeypatch):
    monkeypatch.setattr(support, "find_spec", lambda package: None)
    message = r"a simulation without --in-process needs the package 'ray', .*: pip install -e '\.\[simulation\]'"
    with pytest.raises(UserError, match=message), simulator.simulator(options()):
        pass
    assert not heads

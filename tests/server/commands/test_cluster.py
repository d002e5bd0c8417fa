"""`--ray`, `--workers` and `--gpus`: which cluster a simulation joins, and how many workers it asks for."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from common.flower.processes import environment
from server.__main__ import main
from server.commands import cluster, simulator
from server.commands.cluster import even_share, resources, workers_on

NODES = [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 3.0}, {}]


@pytest.mark.parametrize("words", [["--workers", "0"], ["--workers", "-1"], ["--workers", "1.5"], ["--gpus", "-0.1"],
                                   ["--gpus", "1.5"], ["--gpus", "nan"], ["--gpus", "all"]])  # fmt: skip
def test_run_refuses_impossible_resources(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *words])
    assert ended.value.code == 2
    assert f"{words[1]!r} is not a " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("share", "cap", "expected"), [(0, 0, 7), (0, 5, 5), (0.5, 0, 4), (0.6, 0, 2), (1, 0, 2), (2, 0, 1), (1, 9, 2)]
)
def test_workers_are_what_fits_on_each_node(monkeypatch, share, cap, expected):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 16)
    assert workers_on(NODES, share, cap) == expected


def test_gpus_of_a_cluster_serve_all_cores_beside_them():
    assert even_share(NODES) == 0.5
    assert even_share([*NODES, {"CPU": 16.0, "GPU": 1.0}]) == 0.0625
    assert even_share([{"CPU": 3.0}, {}]) == 0


def test_workers_are_no_more_than_flower_keeps_busy(monkeypatch):
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 2)
    assert workers_on([{"CPU": 64.0}], 0, 0) == 6
    monkeypatch.setattr(cluster.os, "cpu_count", lambda: 64)
    assert workers_on([{"CPU": 64.0}], 0, 0) == 32


def test_cluster_without_room_is_refused():
    with pytest.raises(UserError, match=r"7 cores and 2 GPUs, and a worker takes one core and 3 GPUs"):
        workers_on(NODES, 3, 0)


def test_cluster_that_does_not_answer_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "RESOURCES", "raise ConnectionError('nothing listens')")
    with pytest.raises(UserError, match=r"cluster 10\.0\.0\.1:1 cannot be joined: ConnectionError: nothing listens"):
        resources("10.0.0.1:1", environment(tmp_path))
    monkeypatch.setattr(cluster, "RESOURCES", "print('note'); print('[{\"CPU\": 2.0}]')")
    assert resources("10.0.0.1:1", environment(tmp_path)) == [{"CPU": 2.0}]


def test_environment_joins_a_cluster_only_by_address(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert environment(tmp_path)["RAY_ADDRESS"] == cluster.LOCAL
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert environment(tmp_path)["RAY_ADDRESS"] == "10.0.0.1:6379"


def test_ray_option_comes_before_the_environment(tmp_path, monkeypatch):
    def head(home: Path, workers: int) -> Any:
        assert workers == 0
        raise UserError(environment(home)["RAY_ADDRESS"])

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(simulator, "ray_head", head)
    parser = argparse.ArgumentParser()
    simulator.add_resources(parser)
    options = parser.parse_args(["--ray", "10.0.0.2:6379"])
    with pytest.raises(UserError, match=r"10\.0\.0\.2:6379"), simulator.simulator(options):
        pass

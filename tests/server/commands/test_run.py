"""`python -m server run`: exit codes, what they print, and real simulations on Ray."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from client.app import app
from common.flower.local_grid import LocalGrid
from common.flower.processes import PROJECT
from common.storage.format import FORMAT
from common.storage.run_files import read_events
from server.__main__ import main
from server.commands import run, simulator
from server.commands.launch import Outcome
from strategies.configuration import read_config
from strategies.factory import make_strategy
from tests.support.deployment import ended, run_launcher, wait_until

SETTINGS = {
    "run.strategy": "darkdistill", "run.rounds": 2, "clients.count": 4, "clients.per-round": 4, "data.limit": 200,
    "clients.mix": "1,1,1,1", "darkdistill.server-epochs": 1, "darkdistill.distill-steps": 1,
}  # fmt: skip


@pytest.fixture
def simulations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Start no Ray: every simulation ends at once; the one of method "median" fails."""
    started: list[Mapping[str, Any]] = []

    @contextmanager
    def ray_head(home: Path, workers: int) -> Iterator[dict[str, str]]:
        yield {}

    def simulate(settings: Mapping[str, Any], root: Path, env: Mapping[str, str], **options: Any) -> Outcome:
        started.append({**settings, **options})
        failed = settings.get("run.strategy") == "median"
        return Outcome(root / "x", "finished:failed" if failed else "finished:completed", "quorum" if failed else "")

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    monkeypatch.setattr(simulator, "ray_head", ray_head)
    monkeypatch.setattr(simulator, "simulate", simulate)
    monkeypatch.setattr(run, "_show", lambda folder: print(f"report of {folder}"))
    return started


def test_run_exit_code_says_whether_all_runs_completed(simulations, capsys):
    assert main(["run", "-c", "run.strategy=eefl"]) == 0
    assert "report of" in capsys.readouterr().out
    assert main(["run", "-c", "run.strategy=median"]) == 1
    assert "finished:failed: quorum" in capsys.readouterr().err
    assert main(["run", "-c", "oops"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_shows_no_traceback_when_interrupted(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-m", "server", "run", "-c", "data.limit=100", "-c", "run.name=a"], cwd=PROJECT,
        env=os.environ | {"FLWR_HOME": str(tmp_path / ".flwr")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        log = tmp_path / ".flwr" / "logs" / "a.log"
        wait_until(lambda: log.exists() and log.stat().st_size, 60, "the simulation did not start")
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2  # the simulation and Ray
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in output
    wait_until(lambda: all(ended(child.pid) for child in started), 20, "a process of the simulation still runs")


def test_run_resumes_from_a_folder(simulations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "old").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "config.toml").write_text(f"[run]\nrounds = 3\n[about]\nformat = {FORMAT}\n")
    assert main(["run", "--resume", "runs/old"]) == 0
    (started,) = simulations
    assert started["run.resume"] == str(tmp_path / "runs" / "old")
    assert "run.name" not in started


def test_run_refuses_new_configuration_with_resume(tmp_path, capsys):
    assert main(["run", "--resume", str(tmp_path), "-c", "run.rounds=9"]) == 2
    assert "--resume keeps the configuration" in capsys.readouterr().err


@pytest.mark.deployment
def test_ray_gives_the_weights_of_one_process(tmp_path):
    done = run_launcher(tmp_path, {**SETTINGS, "run.name": "ray"})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "ray"
    assert f"report: {folder / 'report.html'}" in done.stdout
    assert (folder / "report.html").exists()
    assert [e["event"] for e in read_events(folder / "metrics.jsonl")] == ["start", "round", "round", "end"]
    weights = load_file(folder / "final" / "model.safetensors")
    for per_node in range(5):
        changes = {"run.name": f"local-{per_node}", "clients.per-node": per_node, "clients.store": str(tmp_path)}
        strategy = make_strategy(read_config({**SETTINGS, **changes}))
        nodes = [{"partition-id": p} for p in range(-(-4 // per_node) if per_node else 1)]
        strategy.start(LocalGrid(app, nodes))
        assert weights.keys() == strategy.model.keys()
        assert all(torch.equal(weights[key], strategy.model[key]) for key in weights)


def test_run_in_process_gives_the_weights_of_many_nodes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    given = {**SETTINGS, "clients.store": str(tmp_path / "here"), "run.name": "here"}
    pairs = [word for key, value in given.items() for word in ("-c", f"{key}={json.dumps(value)}")]
    assert main(["run", "--in-process", *pairs]) == 0
    folder = tmp_path / "runs" / "here"
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    assert [e["event"] for e in read_events(folder / "metrics.jsonl")] == ["start", "round", "round", "end"]
    there = {"run.name": "there", "clients.store": str(tmp_path / "there"), "clients.per-node": 2}
    strategy = make_strategy(read_config({**SETTINGS, **there}))
    strategy.start(LocalGrid(app, [{"partition-id": p} for p in range(2)]))
    weights = load_file(folder / "final" / "model.safetensors")
    assert weights.keys() == strategy.model.keys()
    assert all(torch.equal(weights[key], strategy.model[key]) for key in weights)


def test_run_in_process_resumes_and_tells_failures(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    small = ["-c", "network.name=lenet", "-c", "data.limit=200", "-c", "clients.count=4", "-c", "clients.per-round=4"]
    assert main(["run", "--in-process", *small, "-c", "run.name=a", "-c", "run.rounds=1"]) == 0
    events = read_events(tmp_path / "runs" / "a" / "metrics.jsonl")
    assert main(["run", "--in-process", "--resume", str(tmp_path / "runs" / "a")]) == 0
    assert len(read_events(tmp_path / "runs" / "a" / "metrics.jsonl")) > len(events)
    assert main(["run", "--in-process", "-c", "run.name=b", "-c", "data.limit=2"]) == 1
    assert "error: run b ended as finished:failed: UserError: " in capsys.readouterr().err
    assert main(["run", "--in-process", "--gpus", "0.5"]) == 2
    assert main(["compare", "--in-process", "--methods", "eefl,fedsgd", *small, "-c", "run.rounds=1"]) == 2
    assert "run.strategy is 'fedsgd', must be one of " in capsys.readouterr().err


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_run_in_process_ends_when_interrupted(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-m", "server", "run", "--in-process", "-c", "run.name=a", "-c", "data.limit=100"],
        cwd=PROJECT, env=os.environ | {"FLWR_HOME": str(tmp_path / ".flwr")}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_until((tmp_path / "runs" / "a").exists, 120, "the run did not start")
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in errors


@pytest.mark.deployment
def test_failed_run_exits_with_1_and_flowers_reason(tmp_path):
    (tmp_path / "empty").mkdir()
    missing = {"data.name": "cifar10", "data.root": str(tmp_path / "empty"), "round.quorum": 1.0}
    done = run_launcher(tmp_path, {**SETTINGS, **missing, "run.name": "failed"})
    assert done.returncode == 1, done.stdout
    assert "error: run failed ended as finished:failed: " in done.stderr
    assert str(tmp_path / "empty") in done.stderr
    assert not (tmp_path / "runs" / "failed").exists()

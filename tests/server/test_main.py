"""The command line: configuration, presets, exit codes, and real simulations on Ray."""

import argparse
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

import server.__main__ as command
from client.app import app
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from server.commands.launch import PROJECT, Outcome
from server.commands.overrides import PRESETS, read_overrides
from strategies.callbacks.run_folder import read_events
from strategies.factory import make_strategy, read_config
from tests.support.deployment import launched, wait_until

SETTINGS = {
    "run.strategy": "darkdistill", "run.rounds": 2, "clients.count": 4, "clients.per-round": 4, "data.limit": 200,
    "clients.mix": "1,1,1,1", "darkdistill.server-epochs": 1, "darkdistill.distill-steps": 1,
}  # fmt: skip


def overrides(*pairs: str, preset: str = "") -> dict[str, Any]:
    return read_overrides(argparse.Namespace(config=list(pairs), preset=preset))


def test_values_are_toml_and_a_bare_word_is_a_string():
    assert overrides("train.lr=0.1", "run.rounds=3", "run.tensorboard=true", "run.name=a-b", "data.name='digits'",
                     "clients.mix=0.5,0.5", "network.exits = 2,4", "run.root=") == {
        "train.lr": 0.1, "run.rounds": 3, "run.tensorboard": True, "run.name": "a-b", "data.name": "digits",
        "clients.mix": "0.5,0.5", "network.exits": "2,4", "run.root": "",
    }  # fmt: skip
    assert type(overrides("run.rounds=3")["run.rounds"]) is int
    assert overrides("run.name=2025-01-31")["run.name"] == "2025-01-31"
    assert overrides("run.name=a=b")["run.name"] == "a=b"
    with pytest.raises(UserError, match=r"-c train\.lr: write KEY=VALUE"):
        overrides("train.lr")


def test_the_data_folder_is_found_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("data.root", "run.root", "distree.teacher"):
        assert overrides(f"{key}=images")[key] == str(tmp_path / "images")


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_presets_are_valid_configurations(preset):
    values = overrides(preset=preset)
    assert values
    config = read_config(values)
    assert {key: config.flat()[key] for key in values} == values
    assert config.run.name == ""  # the launcher names runs


def test_the_command_line_comes_on_top_of_a_preset(tmp_path):
    assert overrides("run.rounds=1", preset="demo") == {**overrides(preset="demo"), "run.rounds": 1}
    (tmp_path / "mine.toml").write_text("[train]\nlr = 0.2\n")
    assert overrides(preset=str(tmp_path / "mine.toml")) == {"train.lr": 0.2}
    with pytest.raises(UserError, match=r"no preset 'demmo': choose one of .*demo"):
        overrides(preset="demmo")


@pytest.fixture
def simulations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """No SuperLink: every simulation ends at once, as the method's name says."""
    asked: list[Mapping[str, Any]] = []

    @contextmanager
    def superlink(home: Path) -> Iterator[dict[str, str]]:
        yield {}

    def simulate(settings: Mapping[str, Any], root: Path, env: Mapping[str, str], **options: Any) -> Outcome:
        asked.append({**settings, **options})
        failed = settings.get("run.strategy") == "fails"
        return Outcome(root / "x", "finished:failed" if failed else "finished:completed", "quorum" if failed else "")

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    monkeypatch.setattr(command, "local_superlink", superlink)
    monkeypatch.setattr(command, "simulate", simulate)
    monkeypatch.setattr(command, "compare_runs", lambda folders: f"{len(folders)} runs")
    monkeypatch.setattr(command, "write_comparison", lambda folders, path: path)
    return asked


def test_exit_codes(simulations, capsys):
    assert command.main(["run", "-c", "run.strategy=eefl"]) == 0
    assert "1 runs" in capsys.readouterr().out
    assert command.main(["run", "-c", "run.strategy=fails"]) == 1
    assert "finished:failed: quorum" in capsys.readouterr().err
    assert command.main(["compare", "--methods", "eefl,fails"]) == 1
    assert command.main(["run", "-c", "oops"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(SystemExit):
        command.main([])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_shows_no_traceback(tmp_path, number):
    with subprocess.Popen(
        [sys.executable, "-m", "server", "run", "-c", "data.limit=100"], cwd=PROJECT,
        env=os.environ | {"FLWR_HOME": str(tmp_path / ".flwr")}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        log = tmp_path / ".flwr" / "superlink.log"
        wait_until(lambda: log.exists() and log.stat().st_size, 60, "no SuperLink")
        (superlink,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        assert process.communicate(timeout=60)[0] == b""
        assert process.returncode == 130
    assert not superlink.is_running()


def test_methods_are_compared_on_the_same_configuration(simulations, capsys):
    assert command.main(["compare", "--preset", "demo", "-c", "run.seed=5", "--workers", "2", "--gpus", "0.5"]) == 0
    assert [run["run.strategy"] for run in simulations] == ["eefl", "darkdistill"]
    assert len({run["run.name"] for run in simulations}) == 2
    differ = ("run.strategy", "run.name")
    one, two = ({k: v for k, v in run.items() if k not in differ} for run in simulations)
    assert one == two == {**overrides(preset="demo"), "run.seed": 5, "workers": 2, "gpus": 0.5}
    assert "comparison: " in capsys.readouterr().out


def test_a_run_is_continued_by_its_folder(simulations, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.main(["run", "--resume", "runs/old"]) == 0
    (asked,) = simulations
    assert asked["run.resume"] == str(tmp_path / "runs" / "old")
    assert "run.name" not in asked


@pytest.mark.deployment
def test_ray_gives_the_weights_of_one_process_however_clients_are_hosted(tmp_path):
    done = launched(tmp_path, {**SETTINGS, "run.name": "ray"})
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


@pytest.mark.deployment
def test_a_failed_run_exits_non_zero_with_flowers_reason(tmp_path):
    missing = {"data.name": "cifar10", "data.root": str(tmp_path / "nowhere"), "round.quorum": 1.0}
    done = launched(tmp_path, {**SETTINGS, **missing, "run.name": "failed"})
    assert done.returncode == 1, done.stdout
    assert "error: failed ended as finished:failed: " in done.stderr
    assert "nowhere" in done.stderr
    assert not (tmp_path / "runs" / "failed").exists()


def test_a_resumed_run_takes_no_new_configuration(tmp_path, capsys):
    assert command.main(["run", "--resume", str(tmp_path), "-c", "run.rounds=9"]) == 2
    assert "keeps the configuration" in capsys.readouterr().err

"""The launcher: its environment, the commands it gives to Flower, and its handling of Flower's answers."""

import errno
import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from server.commands import gpus, launch
from server.commands.launch import Outcome, deploy, environment, local_superlink, simulate
from tests.support.deployment import ended, wait_until
from tests.support.served import read_line


class Flower:
    """Replaces the `flwr` command: gives scripted answers and records the commands."""

    def __init__(self, *statuses: str, refusal: str = "") -> None:
        self.statuses, self.refusal = list(statuses), refusal
        self.commands: list[list[str]] = []
        self.config: dict[str, Any] = {}

    def __call__(self, command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        self.commands.append(list(command))
        if command[1] == "run":
            text = Path(command[command.index("-c") + 1]).read_text()
            tables = tomllib.loads(text)
            self.config = {f"{s}.{k}": v for s, values in tables.items() for k, v in values.items()}
            return {"success": not self.refusal, "run-id": "7", "error-message": self.refusal}
        if command[1] == "list":
            return {"runs": [{"run-id": "7", "status": self.statuses.pop(0), "status-details": "because"}]}
        return {"success": True}


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for pause in ("ASK_EVERY", "STARTING", "ENDING"):
        monkeypatch.setattr(launch, pause, 0.0)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: None)
    return {"FLWR_HOME": str(tmp_path)}


def test_environment_keeps_flower_in_its_home(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/bin")
    found = environment(tmp_path)
    assert found["FLWR_HOME"] == str(tmp_path)
    assert found["FLWR_TELEMETRY_ENABLED"] == "0"
    assert found["FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION"] == "1"
    assert found["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] == "1"
    # Flower starts `flwr-serverapp` and others by name: PATH must lead to those of this Python
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert (Path(sys.executable).parent / "flower-superlink").exists()


def test_simulate_passes_one_file_and_returns_flowers_status(env, tmp_path, monkeypatch):
    flower = Flower("running", "running", "finished:completed")
    monkeypatch.setattr(launch, "_flwr", flower)
    monkeypatch.setattr(gpus, "visible", lambda: 2)
    overrides = {"run.name": "a", "train.lr": 0.1, "server.autocast": True, "clients.mix": 'small "x"'}
    outcome = simulate(overrides, tmp_path / "runs", env, workers=3, share=0.5, show=False)
    assert outcome == Outcome(tmp_path / "runs" / "a", "finished:completed", "because")
    assert outcome.completed
    assert flower.config.pop("run.commit") == launch.commit()
    assert flower.config == {"run.root": str(tmp_path / "runs"), **overrides}
    federation = flower.commands[0][flower.commands[0].index("--federation-config") + 1].split()
    assert {"num-supernodes=3", "client-resources-num-gpus=0.5", "init-args-num-cpus=3"} <= set(federation)
    assert not list(tmp_path.glob("*.toml"))


def test_simulate_asks_for_no_cores_where_ray_runs_already(env, tmp_path, monkeypatch):
    flower = Flower("finished:completed")
    monkeypatch.setattr(launch, "_flwr", flower)
    simulate({"run.name": "a"}, tmp_path, env, workers=3, share=0.0, head=True, show=False)
    federation = flower.commands[0][flower.commands[0].index("--federation-config") + 1].split()
    assert "num-supernodes=3" in federation
    assert not [word for word in federation if word.startswith("init-args-num-cpus")]


@pytest.mark.parametrize(
    ("passed", "started", "ended", "silent", "pause"),
    [
        (5, False, False, False, 10), (60, False, False, False, 15), (5, True, False, False, 3),
        (60, True, False, False, 15), (900, True, False, False, 30), (900, True, True, False, 2),
        (900, True, False, True, 3),
    ],
)  # fmt: skip
def test_status_is_asked_seldom_but_for_the_end(passed, started, ended, silent, pause):
    assert launch._pause(passed, started, ended, silent) == pause


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped"])
def test_simulate_reports_a_run_that_did_not_complete(env, tmp_path, monkeypatch, status):
    log = subprocess.CompletedProcess([], 0, "UserError: no room\nRuntimeError: Simulation Runtime crashed.\n")
    monkeypatch.setattr(launch, "_flwr", Flower(status))
    monkeypatch.setattr(launch, "_output", lambda command, env: log)
    outcome = simulate({"run.name": "a"}, tmp_path, env, workers=1, show=False)
    assert not outcome.completed
    assert outcome.details == "because"
    error = " The log's last error: no room" if status == "finished:failed" else ""
    assert outcome.failure == f"run a ended as {status}: because{error}"


REFUSED = {"success": False, "error-message": "Connection refused"}


@pytest.mark.parametrize(
    ("silence", "message"), [(REFUSED, "Connection refused"), ({"runs": []}, "{'runs': "), (None, "flwr list failed")]
)
def test_simulate_retries_a_silent_superlink_and_then_gives_up(env, tmp_path, monkeypatch, silence, message):
    flower = Flower("finished:completed")
    silences = [silence, silence]

    def answer(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        if command[1] != "list" or not silences:
            return flower(command, env)
        if (found := silences.pop()) is None:
            raise UserError("flwr list failed: ")
        return found

    monkeypatch.setattr(launch, "_flwr", answer)
    assert simulate({"run.name": "a"}, tmp_path, env, workers=1, show=False).completed
    assert not silences
    monkeypatch.setattr(launch, "LOST", -1.0)
    silences = [silence]
    with pytest.raises(UserError, match=f"has gone: {message}.* continue with --resume {tmp_path / 'a'}"):
        simulate({"run.name": "a"}, tmp_path, env, workers=1, show=False)


def test_simulate_follows_a_resumed_run_in_its_folder(env, tmp_path, monkeypatch):
    flower = Flower("finished:completed")
    monkeypatch.setattr(launch, "_flwr", flower)
    folder = tmp_path / "elsewhere" / "old"
    folder.mkdir(parents=True)
    line = {"event": "round", "round": 3, "rounds": 4, "accuracy": {"mean": 0.5}}
    (folder / "metrics.jsonl").write_text(json.dumps(line) + '\n{"event": "rou')
    assert simulate({"run.resume": str(folder)}, tmp_path, env, workers=1, show=True).folder == folder
    assert flower.config["run.resume"] == str(folder)


def test_simulate_shows_what_a_started_run_has_read(env, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "runs" / "x"
    folder.mkdir(parents=True)
    (folder / "data.json").write_text(json.dumps({"lines": ["data digits: 8 train", "  note: [2] are left out"]}))
    (folder / "metrics.jsonl").write_text(json.dumps({"event": "start"}) + "\n")
    monkeypatch.setattr(launch, "_flwr", Flower("finished:completed"))
    monkeypatch.setattr(launch, "ASK_EVERY", 0.0)
    simulate({"run.name": "x"}, tmp_path / "runs", env)
    assert "data digits: 8 train\n  note: [2] are left out\n" in capsys.readouterr().out


def test_simulate_follows_a_run_below_run_root(env, tmp_path, monkeypatch):
    flower, root = Flower("finished:completed"), tmp_path / "kept"
    monkeypatch.setattr(launch, "_flwr", flower)
    overrides = {"run.name": "a", "run.root": str(root)}
    assert simulate(overrides, tmp_path / "runs", env, workers=1, show=False).folder == root / "a"
    assert flower.config["run.root"] == str(root)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("no such app", "did not accept the run: no such app"),
        ("Client error '403 Forbidden' for url 'https://x'", "a proxy passes only what devices use"),
    ],
)
def test_simulate_reports_the_reason_for_a_refusal(env, tmp_path, monkeypatch, refusal, message):
    monkeypatch.setattr(launch, "_flwr", Flower(refusal=refusal))
    with pytest.raises(UserError, match=message):
        simulate({"run.name": "a"}, tmp_path, env, workers=1, show=False)


def fail_on_closed_terminal(*_: object) -> None:
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("number", "ends", "stop"),
    [
        (signal.SIGINT, KeyboardInterrupt, launch.Progress.stop),
        (signal.SIGTERM, KeyboardInterrupt, launch.Progress.stop),
        (signal.SIGHUP, OSError, fail_on_closed_terminal),
    ],
)
def test_deploy_stops_its_run_on_a_signal(env, tmp_path, monkeypatch, number, ends, stop):
    flower = Flower()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here (`nohup`)
    monkeypatch.setattr(launch.Progress, "stop", stop)
    monkeypatch.setattr(launch, "_flwr", flower)
    monkeypatch.setattr(launch.time, "sleep", lambda seconds: os.kill(os.getpid(), number))
    with pytest.raises(ends):
        deploy({"run.name": "a"}, tmp_path, env, "there", show=False)
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL
    assert flower.commands[-1][:4] == ["flwr", "stop", "7", "there"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_flwr_passes_on_what_a_failed_command_prints(tmp_path):
    env = os.environ | {"FLWR_HOME": str(tmp_path)}
    with pytest.raises(UserError, match="No such file"):
        launch._flwr([sys.executable, "nothing.py"], env)
    assert launch._flwr([sys.executable, "-c", "print('note {\"a\": 1}')"], env) == {"a": 1}


def test_local_superlink_names_its_log_if_it_does_not_start(tmp_path, monkeypatch):
    popen = subprocess.Popen
    monkeypatch.setattr(launch.subprocess, "Popen", lambda command, **kwargs: popen(["false"], **kwargs))
    with pytest.raises(UserError, match=r"did not start: see .*superlink\.log"), local_superlink(tmp_path / "home"):
        pass


def test_commit_is_empty_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.commit() == ""


LAUNCHER = """
import signal, sys, time
from pathlib import Path
from server.commands import launch
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here (`nohup`)
tied = launch.tied
launch.tied = lambda command: tied(["sleep", "60"])
launch.wait_for_port = lambda host, port, process: print(process.pid, flush=True) or True
with launch.local_superlink(Path(sys.argv[1])):
    for _ in range(600):
        time.sleep(0.1)  # a signal just before a sleep does not shorten it
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_local_superlink_ends_with_its_launcher(tmp_path, number):
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux signals a child when its parent is killed")
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path / "home")]
    with subprocess.Popen(command, cwd=launch.PROJECT, stdout=subprocess.PIPE, text=True) as launcher:
        superlink = int(read_line(launcher))
        launcher.send_signal(number)
        assert launcher.wait(60) != 0
    wait_until(lambda: ended(superlink), 20, "the SuperLink still runs")

"""Runs on devices: the commands that the launcher gives to Flower, and what it makes of Flower's answers."""

import errno
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
from server.commands import deploy as deployment
from server.commands import launch
from server.commands.deploy import deploy
from server.commands.launch import Outcome


class Flower:
    """Replaces the `flwr` command: gives scripted answers and records the commands."""

    def __init__(self, *statuses: str, refusal: str = "", signal: int = 0) -> None:
        self.statuses, self.refusal = list(statuses), refusal
        self.signal = signal  # which this process gets while Flower accepts the run
        self.commands: list[list[str]] = []
        self.config: dict[str, Any] = {}

    def __call__(self, command: Sequence[str], env: Mapping[str, str], noted: Sequence[int] = ()) -> dict[str, Any]:
        self.commands.append(list(command))
        if command[1] == "run":
            if self.signal:
                os.kill(os.getpid(), self.signal)
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
        monkeypatch.setattr(deployment, pause, 0.0)
    monkeypatch.setattr(deployment.time, "sleep", lambda seconds: None)
    return {"FLWR_HOME": str(tmp_path)}


def run(env: dict[str, str], root: Path, **overrides: Any) -> Outcome:
    settings = {"run.name": "a"} | {key.replace("__", "."): value for key, value in overrides.items()}
    return deploy(settings, root, env, "there", show=False)


def test_deploy_passes_one_file_and_returns_flowers_status(env, tmp_path, monkeypatch):
    flower = Flower("running", "running", "finished:completed")
    monkeypatch.setattr(deployment, "_flwr", flower)
    overrides = {"run.name": "a", "train.lr": 0.1, "server.autocast": True, "clients.mix": 'small "x"'}
    outcome = deploy(overrides, tmp_path / "runs", env, "there", show=False)
    assert outcome == Outcome(tmp_path / "runs" / "a", "finished:completed", "because")
    assert outcome.completed
    assert flower.config.pop("run.commit") == launch.commit()
    assert flower.config == overrides
    assert flower.commands[0][3] == "there"
    assert not list(tmp_path.glob("*.toml"))


@pytest.mark.parametrize(
    ("passed", "started", "ended", "silent", "pause"),
    [
        (5, False, False, False, 10), (60, False, False, False, 15), (5, True, False, False, 3),
        (60, True, False, False, 15), (900, True, False, False, 30), (900, True, True, False, 2),
        (900, True, False, True, 3),
    ],
)  # fmt: skip
def test_status_is_asked_seldom_but_for_the_end(passed, started, ended, silent, pause):
    assert deployment._pause(passed, started, ended, silent) == pause


@pytest.mark.parametrize("status", ["finished:failed", "finished:stopped"])
def test_deploy_reports_a_run_that_did_not_complete(env, tmp_path, monkeypatch, status):
    log = subprocess.CompletedProcess([], 0, "ValueError: because\nUserError: no room\nSystemError: because\n")
    monkeypatch.setattr(deployment, "_flwr", Flower(status))
    monkeypatch.setattr(deployment, "_output", lambda command, env, noted=(): log)
    outcome = run(env, tmp_path)
    assert not outcome.completed
    error = " The log's last error: no room" if status == "finished:failed" else ""
    assert outcome.failure == f"run a ended as {status}: because{error}"


REFUSED = {"success": False, "error-message": "Connection refused"}


@pytest.mark.parametrize(
    ("silence", "message"), [(REFUSED, "Connection refused"), ({"runs": []}, "{'runs': "), (None, "flwr list failed")]
)
def test_deploy_retries_a_silent_superlink_and_then_gives_up(env, tmp_path, monkeypatch, silence, message):
    flower = Flower("finished:completed")
    silences = [silence, silence]

    def answer(command: Sequence[str], env: Mapping[str, str], noted: Sequence[int] = ()) -> dict[str, Any]:
        if command[1] != "list" or not silences:
            return flower(command, env)
        if (found := silences.pop()) is None:
            raise UserError("flwr list failed: ")
        return found

    monkeypatch.setattr(deployment, "_flwr", answer)
    assert run(env, tmp_path).completed
    assert not silences
    monkeypatch.setattr(deployment, "LOST", -1.0)
    silences = [silence]
    with pytest.raises(
        UserError, match=f"no answer from the SuperLink .*: {message}.* continue with --resume {tmp_path / 'a'};"
    ):
        run(env, tmp_path)


@pytest.mark.parametrize(
    ("refusal", "message"),
    [
        ("no such app", "did not accept the run: no such app"),
        ("Client error '403 Forbidden' for url 'https://x'", "a proxy passes only what devices use"),
    ],
)
def test_deploy_reports_the_reason_for_a_refusal(env, tmp_path, monkeypatch, refusal, message):
    monkeypatch.setattr(deployment, "_flwr", Flower(refusal=refusal))
    with pytest.raises(UserError, match=message):
        run(env, tmp_path)


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
    monkeypatch.setattr(deployment, "_flwr", flower)
    monkeypatch.setattr(deployment.time, "sleep", lambda seconds: os.kill(os.getpid(), number))
    with pytest.raises(ends):
        deploy({"run.name": "a"}, tmp_path, env, "there", show=False)
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL
    assert flower.commands[-1][:4] == ["flwr", "stop", "7", "there"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_deploy_stops_a_run_that_flower_accepts_after_a_signal(env, tmp_path, monkeypatch):
    flower = Flower(signal=signal.SIGINT)
    monkeypatch.setattr(deployment, "_flwr", flower)
    with pytest.raises(KeyboardInterrupt):
        run(env, tmp_path)
    assert [command[1] for command in flower.commands] == ["run", "stop"]


def test_run_that_cannot_be_stopped_is_named(env, tmp_path, monkeypatch, capsys):
    def refuse(command: Sequence[str], env: Mapping[str, str]) -> dict[str, Any]:
        return REFUSED

    monkeypatch.setattr(deployment, "_flwr", refuse)
    deployment._stop("7", "there", env)
    assert capsys.readouterr().err == "run 7 was not stopped: Connection refused; try `flwr stop 7 there`\n"


def test_resumed_run_has_not_ended_by_its_earlier_end(env, tmp_path, monkeypatch):
    looks = [["start", "end", "start"], ["round"], ["end"]]
    monkeypatch.setattr(launch.Watch, "look", lambda watch: [{"event": name} for name in looks.pop(0)] if looks else [])
    pauses: list[bool] = []
    monkeypatch.setattr(deployment, "_pause", lambda passed, started, ended, silent: pauses.append(ended) or 0.0)
    monkeypatch.setattr(deployment, "_flwr", Flower(*["running"] * 3, "finished:completed"))
    assert run(env, tmp_path).completed
    assert pauses[:3] == [False, False, True]


def test_flower_that_does_not_answer_after_a_signal_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(deployment, "ACCEPTED", 1.0)
    nap = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(KeyboardInterrupt):
        deployment._output(nap, os.environ | {"FLWR_HOME": str(tmp_path)}, [signal.SIGINT])


def test_flwr_passes_on_what_a_failed_command_prints(tmp_path):
    env = os.environ | {"FLWR_HOME": str(tmp_path)}
    with pytest.raises(UserError, match="No such file"):
        deployment._flwr([sys.executable, "nothing.py"], env)
    assert deployment._flwr([sys.executable, "-c", "print('note {\"a\": 1}')"], env) == {"a": 1}

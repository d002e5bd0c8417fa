"""Simulations: what their process is asked for, what becomes of its answer, and that it ends with its launcher."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest

from common.errors import UserError
from common.flower.processes import PROJECT, environment
from server.commands import cluster, gpus, simulate
from server.commands.launch import Outcome, commit
from server.simulation import Request
from tests.support.deployment import ended, wait_until
from tests.support.served import read_line

LOCAL = {"RAY_ADDRESS": cluster.LOCAL}


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Start nothing: the list has what is asked for."""
    found: list[Request] = []

    def run(request: Request, folder: Path, env: dict[str, str], show: bool) -> Outcome:
        found.append(request)
        return Outcome(folder, json.dumps(env), str(show))

    monkeypatch.setattr(simulate, "_run", run)
    monkeypatch.setattr(gpus, "visible", lambda: 2)
    monkeypatch.setattr(cluster, "resources", lambda address, env: [{"CPU": 1.0}, {"CPU": 2.0}])
    return found


def test_request_has_the_settings_and_the_workers(requests, tmp_path):
    overrides = {"run.name": "a", "train.lr": 0.1, "clients.mix": 'small "x"'}
    outcome = simulate.simulate(overrides, tmp_path / "runs", LOCAL, workers=3, share=0.5, show=False)
    assert outcome == Outcome(tmp_path / "runs" / "a", json.dumps(LOCAL), "False")
    settings = {"run.root": str(tmp_path / "runs"), "run.commit": commit(), **overrides}
    resources, ray = {"num_cpus": 1, "num_gpus": 0.5}, {"log_to_driver": False, "num_cpus": 3}
    assert requests == [Request(settings=settings, workers=3, resources=resources, ray=ray)]


def test_workers_follow_the_gpus(requests, tmp_path):
    simulate.simulate({"run.name": "a"}, tmp_path, LOCAL, workers=16, share=0.25)
    assert (requests[0]["workers"], requests[0]["resources"]["num_gpus"], requests[0]["ray"]["num_cpus"]) == (
        8,
        0.25,
        8,
    )


def test_no_cores_are_asked_for_where_ray_runs_already(requests, tmp_path):
    joined = {"RAY_ADDRESS": "127.0.0.1:6000", "RAY_AUTH_TOKEN": "x"}
    outcome = simulate.simulate({"run.name": "a"}, tmp_path, LOCAL, ray=joined, workers=3, share=0.0)
    assert (requests[0]["workers"], requests[0]["ray"]) == (3, {"log_to_driver": False})
    assert json.loads(outcome.status) == joined


@pytest.mark.parametrize(
    ("given", "state"), [({}, "server"), ({"clients.store": "/mnt"}, "shared"), ({"clients.state": "node"}, "node")]
)
def test_workers_of_a_cluster_are_those_that_fit(requests, tmp_path, given, state):
    simulate.simulate({"run.name": "a", **given}, tmp_path, {"RAY_ADDRESS": "10.0.0.1:6379"})
    assert (requests[0]["workers"], requests[0]["ray"]) == (3, {"log_to_driver": False})
    assert requests[0]["settings"]["clients.state"] == state


def test_clients_on_cpus_leave_the_gpus_of_a_cluster_alone(requests, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "resources", lambda address, env: [{"CPU": 4.0, "GPU": 1.0}])
    for device, share in (("auto", 0.25), ("cpu", 0.0)):
        simulate.simulate({"run.name": "a", "clients.device": device}, tmp_path, {"RAY_ADDRESS": "10.0.0.1:6379"})
        assert requests[-1]["resources"]["num_gpus"] == share
    for address in (cluster.LOCAL, "10.0.0.1:6379"):
        with pytest.raises(UserError, match=r"--gpus 1 does not go with clients\.device 'cpu'"):
            simulate.simulate({"run.name": "a", "clients.device": "cpu"}, tmp_path, {"RAY_ADDRESS": address}, share=1.0)


PROCESS = """
import os, sys
request = sys.stdin.readline()
print("to the log", os.getcwd(), file=sys.stderr, flush=True)
"""
ANSWERS = {
    "completed": ('print(\'{"failure": ""}\')', "finished:completed", ""),
    "failed": ('print(\'{"failure": "UserError: no room"}\')', "finished:failed", "UserError: no room"),
    "killed": ("os.kill(os.getpid(), 9)", "finished:failed", "its process was killed, out of memory? (exit code -9)"),
    "ended": ("sys.exit(3)", "finished:failed", "its process ended without an answer (exit code 3)"),
}


def stand_in(folder: Path, end: str) -> None:
    """Put a package in place of the server's, whose simulation ends so."""
    (folder / "server").mkdir(parents=True)
    (folder / "server" / "__init__.py").touch()
    (folder / "server" / "simulation.py").write_text(PROCESS + end)


@pytest.mark.parametrize("show", [True, False])
@pytest.mark.parametrize("end", ANSWERS)
def test_outcome_is_the_answer_of_the_process(tmp_path, monkeypatch, capfd, end, show):
    code, status, details = ANSWERS[end]
    stand_in(tmp_path / "app", code)
    monkeypatch.setattr(simulate, "app_files", lambda home, compiled: nullcontext(tmp_path / "app"))
    env = environment(tmp_path) | LOCAL
    outcome = simulate.simulate({"run.name": "a"}, tmp_path / "runs", env, workers=1, share=0.0, show=show)
    assert outcome.folder == tmp_path / "runs" / "a"
    assert outcome.status == status
    assert outcome.details.startswith(details)
    log = tmp_path / "logs" / "a.log"
    assert (str(log) in outcome.details) == (show and end != "completed")
    assert (log.read_text() if show else capfd.readouterr().err) == f"to the log {tmp_path}\n"


def test_only_the_newest_logs_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(simulate, "KEPT", 2)
    stand_in(tmp_path / "app", ANSWERS["completed"][0])
    monkeypatch.setattr(simulate, "app_files", lambda home, compiled: nullcontext(tmp_path / "app"))
    logs = tmp_path / "logs"
    logs.mkdir()
    for age, name in enumerate(("c", "b", "old", "older")):
        (logs / f"{name}.log").touch()
        os.utime(logs / f"{name}.log", (1000 - age, 1000 - age))
    simulate.simulate({"run.name": "a"}, tmp_path / "runs", environment(tmp_path) | LOCAL, workers=1, share=0.0)
    assert sorted(log.name for log in logs.iterdir()) == ["a.log", "b.log", "c.log"]


def test_process_that_ends_before_it_has_read_is_a_failure(tmp_path, monkeypatch):
    stand_in(tmp_path / "app", "")
    (tmp_path / "app" / "server" / "simulation.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(simulate, "app_files", lambda home, compiled: nullcontext(tmp_path / "app"))
    overrides = {"run.name": "a", "data.root": "long" * 100_000}  # more than a pipe holds
    outcome = simulate.simulate(overrides, tmp_path, environment(tmp_path) | LOCAL, workers=1, share=0.0, show=False)
    assert outcome.failure == "run a ended as finished:failed: its process ended without an answer (exit code 3)"


LAUNCHER = """
import signal, sys
from contextlib import nullcontext
from pathlib import Path
from common.flower.processes import environment
from server.commands import simulate
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here (`nohup`)
home, app = Path(sys.argv[1]), sys.argv[2]
if app:
    simulate.app_files = lambda home, compiled: nullcontext(app)
env = environment(home) | {"RAY_ADDRESS": "local"}
settings = {"run.name": "a", "data.limit": 200, "run.rounds": 200, "clients.count": 4, "clients.per-round": 4}
simulate.simulate(settings, home / "runs", env, workers=1, show=False)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_process_ends_with_its_launcher(tmp_path, number):
    stand_in(tmp_path / "app", "print(os.getpid(), file=sys.stderr, flush=True); sys.stdin.read()")
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path), str(tmp_path / "app")]
    with subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as launcher:
        read_line(launcher)
        process = int(read_line(launcher))
        launcher.send_signal(number)
        assert launcher.wait(60) != 0
    wait_until(lambda: ended(process), 20, "the simulation's process still runs")


@pytest.mark.deployment
def test_rays_processes_end_with_a_killed_launcher(tmp_path):
    metrics = tmp_path / "runs" / "a" / "metrics.jsonl"
    env = os.environ | {"TMPDIR": str(tmp_path)}  # the copy of the app stays
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(tmp_path), ""], cwd=PROJECT, env=env) as launcher:
        wait_until(lambda: metrics.exists() and "round" in metrics.read_text(), 120, "the run has no round")
        started = psutil.Process(launcher.pid).children(recursive=True)
        assert {"raylet", "gcs_server"} <= {process.name() for process in started}
        launcher.kill()
    wait_until(lambda: all(ended(process.pid) for process in started), 20, "a process of the simulation still runs")

"""Ray for all runs of a command: who can join it, and that it ends with the command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import UserError
from common.flower.processes import PROJECT, interrupted_by_signals
from server.commands.ray_head import ray_head
from tests.support.deployment import ended, wait_until
from tests.support.served import read_line

JOIN = """
import json, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print(json.dumps([ray.cluster_resources()["CPU"], ray.get_runtime_context().get_job_id()]))
"""


def join(variables: dict[str, str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", JOIN], env=os.environ | variables,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.deployment
def test_runs_join_one_after_the_other_and_none_without_the_token(tmp_path):
    with ray_head(tmp_path, 3) as joined:
        cores, jobs = zip(*(json.loads(join(joined).communicate(timeout=100)[0]) for _ in range(2)), strict=True)
        assert cores == (3, 3)
        assert jobs[0] != jobs[1]
        with join(joined | {"RAY_AUTH_TOKEN": "0" * 64}) as other:
            assert other.stderr
            assert any("InvalidAuthToken" in line for line in other.stderr)  # it would try again for half a minute
            other.kill()
        started = psutil.Process().children(recursive=True)
        assert "gcs_server" in {process.name() for process in started}
        scripts = {Path(word).name for process in started for word in process.cmdline() if word.endswith(".py")}
        assert scripts.isdisjoint({"monitor.py", "log_monitor.py", "dashboard.py"}), scripts
    wait_until(lambda: all(ended(process.pid) for process in started), 20, "a process of Ray's still runs")


def test_without_workers_nothing_starts(tmp_path):
    with ray_head(tmp_path, 0) as joined:
        assert joined == {}
    assert not list(tmp_path.iterdir())


LAUNCHER = """
import sys, time
from pathlib import Path
from server.commands import ray_head
ray_head.HEAD = "import sys; print(1, flush=True); sys.stdin.read()"
with ray_head.ray_head(Path(sys.argv[1]), 1):
    print(1, flush=True)
    time.sleep(60)
"""


def test_ray_ends_with_a_launcher_that_is_killed(tmp_path: Path):
    command = [sys.executable, "-c", LAUNCHER, str(tmp_path)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as launcher:
        read_line(launcher)
        (head,) = psutil.Process(launcher.pid).children()
        launcher.send_signal(signal.SIGKILL)
    wait_until(lambda: ended(head.pid), 20, "Ray's process still runs")


def test_ray_that_ends_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.commands.ray_head.HEAD", "raise SystemExit('no shared memory')")
    message = rf"has ended \(exit code 1\): see {tmp_path / 'ray.log'}"
    began = time.monotonic()
    with pytest.raises(UserError, match=message), interrupted_by_signals(), ray_head(tmp_path, 1):
        time.sleep(60)
    assert time.monotonic() - began < 30
    assert (tmp_path / "ray.log").read_text() == "no shared memory\n"


def test_signal_to_all_processes_is_no_failure_of_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("server.commands.ray_head.HEAD", "import time; time.sleep(60)")
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals(), ray_head(tmp_path, 1):
        (head,) = psutil.Process().children()
        head.terminate()
        time.sleep(60)

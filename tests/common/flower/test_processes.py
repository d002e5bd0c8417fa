"""Child processes get this process's signals and end with their block."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import UserError
from common.flower import processes
from common.flower.processes import (
    LONGEST_RAY,
    PROJECT,
    SIGNALS,
    check_free,
    child,
    environment,
    flower_home,
    free_port,
    interrupted_by_signals,
    noted_signals,
    tied,
    wait_for_port,
)
from tests.support.deployment import ended, wait_until
from tests.support.served import read_line

NAP = [sys.executable, "-c", "import time; time.sleep(60)"]
# writes the signals that it gets into a file
LISTENER = """
import signal, sys, time
def note(number, _):
    open(sys.argv[1], "a").write(f"{number}\\n")
    sys.exit(7)
signal.signal(signal.SIGINT, note); signal.signal(signal.SIGTERM, note)
open(sys.argv[1], "a").write("ready\\n")
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def heard_hangup() -> Iterator[None]:
    """Handle SIGHUP, even if these tests were started with `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "passed"),
    [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGTERM), (signal.SIGHUP, signal.SIGTERM)],
)
def test_signals_are_passed_on_once(tmp_path, number, passed):
    file = tmp_path / "signals"
    before = signal.getsignal(number)
    with child([sys.executable, "-c", LISTENER, str(file)], os.environ, tmp_path) as process:
        wait_until(lambda: file.exists() and file.read_text() == "ready\n", 60, "the child did not start")
        assert not process.stopped
        os.kill(os.getpid(), number)
        assert process.wait() == 7
        assert process.stopped
    assert file.read_text() == f"ready\n{int(passed)}\n"
    assert signal.getsignal(number) is before


def test_closed_terminal_sends_one_signal(tmp_path):
    with child(NAP, os.environ, tmp_path) as process:
        sent: list[int] = []
        process.process.send_signal = sent.append  # type: ignore[method-assign]
        for _ in range(2):  # from the shell, and from the system when the shell has ended
            os.kill(os.getpid(), signal.SIGHUP)
        del process.process.send_signal
        assert sent == [signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)  # must not interrupt the cleanup
            ended = True
    assert ended


def test_process_under_nohup_survives_its_terminal(tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    with interrupted_by_signals(), noted_signals() as noted, child(NAP, os.environ, tmp_path, noted) as process:
        os.kill(os.getpid(), signal.SIGHUP)
        assert (noted, process.stopped, process.process.poll()) == ([], False, None)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


KILLED = """
import os, time
from pathlib import Path
from common.flower.processes import child
with child(["sleep", "60"], os.environ, Path()) as process:
    while "sleep" not in Path(f"/proc/{process.process.pid}/comm").read_text():
        time.sleep(0.01)
    print(process.process.pid, flush=True)
    process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child whose parent was killed")
def test_child_ends_with_a_killed_launcher():
    command = [sys.executable, "-c", KILLED]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as launcher:
        sleeper = int(read_line(launcher))
        launcher.kill()
        wait_until(lambda: ended(sleeper), 30, "the child still runs")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child whose parent was killed")
def test_child_of_a_dead_launcher_does_not_start(tmp_path):
    command = [*tied(["touch", str(tmp_path / "started")])]
    subprocess.run(command, check=True)
    assert (tmp_path / "started").exists()
    command[command.index(str(os.getpid()))] = str(os.getppid())
    (tmp_path / "started").unlink()
    subprocess.run(command, check=True)
    assert not (tmp_path / "started").exists()


def test_end_by_a_passed_signal_is_no_failure(tmp_path):
    with child(NAP, os.environ, tmp_path) as process:
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait() == 0
    with child(NAP, os.environ, tmp_path) as process:
        process.process.kill()
        assert process.wait() == -signal.SIGKILL


def test_signal_during_the_start_reaches_the_child(tmp_path, monkeypatch):
    popen = subprocess.Popen

    def start_and_signal(*arguments, **options):
        process = popen(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return process

    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("it was not passed on"))
    try:
        monkeypatch.setattr(subprocess, "Popen", start_and_signal)
        with child(NAP, os.environ, tmp_path) as process:
            assert process.stopped
            assert process.wait() == 0
    finally:
        signal.signal(signal.SIGTERM, before)


def test_signal_before_the_start_reaches_the_child(tmp_path):
    before = {number: signal.getsignal(number) for number in SIGNALS}
    with noted_signals() as noted:
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        with child(NAP, os.environ, tmp_path, noted) as process:
            assert process.stopped
            assert process.wait() == 0
        os.kill(os.getpid(), signal.SIGINT)  # after the child's block signals are noted again
        assert noted == [signal.SIGTERM, signal.SIGINT]
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_every_signal_interrupts_like_sigint():
    for number in SIGNALS:
        with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
            os.kill(os.getpid(), number)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_later_signals_do_not_interrupt_the_end():
    ended: list[bool] = []
    with pytest.raises(KeyboardInterrupt), interrupted_by_signals():
        try:
            with interrupted_by_signals():
                os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGHUP)
            ended.append(True)
    assert ended
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_failed_start_restores_the_signal_handlers(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(FileNotFoundError), child(NAP, os.environ, tmp_path / "nowhere"):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_child_ends_with_its_block(tmp_path):
    with pytest.raises(RuntimeError, match="oops"), child(NAP, os.environ, tmp_path) as process:
        raise RuntimeError("oops")
    assert process.process.poll() == -signal.SIGTERM


def test_wait_for_port_ends_with_its_process(tmp_path):
    port = free_port()
    with child(NAP, os.environ, tmp_path) as process:
        assert not wait_for_port("127.0.0.1", port, process.process, 0.3)
        with socket.create_server(("127.0.0.1", port)):
            assert wait_for_port("127.0.0.1", port, process.process)
    started = time.monotonic()
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert not wait_for_port("127.0.0.1", port, ended)
    assert time.monotonic() - started < 20  # for a running process it would wait for 30


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


def test_flower_home_is_beside_the_project_or_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("FLWR_HOME")
    assert flower_home(None) == PROJECT / ".flwr"
    monkeypatch.setattr(processes, "PROJECT", tmp_path)  # without pyproject.toml, as in site-packages
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert flower_home(None) == tmp_path / "me" / ".flwr"


def test_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at 127\.0\.0\.1:{port}: .*; give another --port"):
            check_free("127.0.0.1", port, "--port")
    check_free("127.0.0.1", port, "--port")


def test_flower_home_is_that_of_user_then_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path / "env"))
    assert flower_home(None) == tmp_path / "env"
    assert flower_home(tmp_path) == tmp_path / ".flwr"
    monkeypatch.chdir(tmp_path)
    assert flower_home(Path("here")) == tmp_path / "here" / ".flwr"
    assert environment(tmp_path)["FLWR_HOME"] == str(tmp_path)


DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([sys.executable, "-c", code])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_deaf_child_and_what_it_leaves_are_killed_after_a_signal(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)
    monkeypatch.setattr(processes, "AFTERWARDS", 0.5)
    (tmp_path / "deaf.py").write_text(f"import sys; sys.stdout = open({str(tmp_path / 'pid')!r}, 'w')\n{DEAF}")
    with child([sys.executable, str(tmp_path / "deaf.py")], os.environ, tmp_path) as process:
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), 60, "no grandchild")
        grandchild = int((tmp_path / "pid").read_text())
        os.kill(os.getpid(), signal.SIGTERM)
        assert process.wait() == 0
    wait_until(lambda: ended(grandchild), 10, "it lives")


PROXIES = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({}, {"no_proxy": "localhost,127.0.0.1,::1"}),
        ({"no_proxy": ""}, {"no_proxy": "localhost,127.0.0.1,::1"}),
        ({"no_proxy": "a.org, localhost"}, {"no_proxy": "a.org,localhost,127.0.0.1,::1"}),
        ({"NO_PROXY": "a.org"}, {"NO_PROXY": "a.org,localhost,127.0.0.1,::1"}),
        (
            {"no_proxy": "a", "no_grpc_proxy": "b"},
            {"no_proxy": "a,localhost,127.0.0.1,::1", "no_grpc_proxy": "b,localhost,127.0.0.1,::1"},
        ),
        ({"no_proxy": "*"}, {"no_proxy": "*"}),
    ],
)
def test_proxies_are_not_asked_for_loopback(before, expected, tmp_path, monkeypatch):
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    env = environment(tmp_path)
    assert {name: env[name] for name in PROXIES if name in env} == expected


def test_ray_gets_a_folder_with_a_short_path(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/short")
    assert "RAY_TMPDIR" not in environment(tmp_path)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * LONGEST_RAY)
    assert environment(tmp_path)["RAY_TMPDIR"] == "/tmp"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/ray")
    assert environment(tmp_path)["RAY_TMPDIR"] == "/tmp/ray"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * LONGEST_RAY)
    with pytest.raises(UserError, match=f"RAY_TMPDIR is /tmp/xxx.* {LONGEST_RAY} characters at most"):
        environment(tmp_path)


def test_longest_folder_of_ray_fits_a_socket_path():
    session = "/ray/session_2026-11-28_22-56-25_123456_4194304/sockets/plasma_store"
    assert LONGEST_RAY + len(session) <= 107

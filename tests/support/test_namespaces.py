"""Hosts in namespaces: the delay, rate, loss and clean-up that other tests rely on."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.namespaces import PREFIX, Host, namespaces_available, network

pytestmark = pytest.mark.skipif(bool(namespaces_available()), reason=namespaces_available())

ECHO = """
import socket
with socket.create_server(("0.0.0.0", 7000)) as server:
    print("listens", flush=True)
    while True:
        connection, _ = server.accept()
        while data := connection.recv(65536):
            connection.sendall(data)
"""
ASK = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], 7000), timeout=float(sys.argv[3]))
size, times = int(sys.argv[2]), []
for _ in range(5):
    started, left = time.perf_counter(), size
    connection.sendall(bytes(size))
    while left:
        left -= len(connection.recv(65536))
    times.append(time.perf_counter() - started)
print(min(times))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[Mapping[str, Host]]:
    with network(["server", "device"]) as hosts:
        process = hosts["device"].popen([sys.executable, "-c", ECHO], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "listens\n"
        yield hosts
        process.kill()
        process.wait()


def ask(hosts: Mapping[str, Host], size: int = 10, timeout: float = 10) -> float:
    """Return the seconds of the fastest of five round trips; 0 without a connection."""
    command = [sys.executable, "-c", ASK, hosts["device"].address, str(size), str(timeout)]
    process = hosts["server"].popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    answer, _ = process.communicate()
    return float(answer or 0)


def test_delay_counts_twice_in_round_trip(hosts: Mapping[str, Host]) -> None:
    hosts["device"].link()
    assert 0 < ask(hosts) < 0.05
    hosts["device"].link(delay=0.05)
    assert 0.1 <= ask(hosts) < 0.15


def test_rate_limits_both_directions(hosts: Mapping[str, Host]) -> None:
    hosts["device"].link(rate=1e6)
    # the first packet is already answered while the last one is still being sent
    assert 0.08 <= ask(hosts, 10_000) < 0.3


def test_full_loss_stops_all_traffic(hosts: Mapping[str, Host]) -> None:
    hosts["device"].link(loss=1.0)
    assert ask(hosts, timeout=0.3) == 0
    hosts["device"].link()
    assert ask(hosts) > 0


def test_namespaces_are_removed_after_failure_and_kill() -> None:
    with pytest.raises(ZeroDivisionError), network(["a"]) as hosts:
        sleeper = hosts["a"].popen(["sleep", "60"])
        _ = 1 / 0
    assert sleeper.wait(5) == -signal.SIGKILL
    script = "from tests.support.namespaces import network; import os\nwith network(['a']): os.kill(os.getpid(), 9)"
    killed = subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[2])
    assert killed.wait() == -signal.SIGKILL
    assert f"{PREFIX}-{killed.pid}-" in listed()
    with network(["a"]):
        assert f"{PREFIX}-{killed.pid}-" not in listed()
        assert f"{PREFIX}-{os.getpid()}-" in listed()


def listed() -> str:
    time.sleep(0.1)
    return subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout

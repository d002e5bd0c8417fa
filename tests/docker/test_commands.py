"""The images' command lines as plain processes on one machine: server, devices, health checks and run."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from common.flower.processes import PROJECT
from strategies.callbacks.run_folder import read_events
from tests.docker.compose import read, words
from tests.support.deployment import free_port, wait_until
from tests.support.machines import Machines

DEMO = read("compose.yml")["services"]
CLIENTS = [name for name in DEMO if name.startswith("client-")]
pytestmark = [pytest.mark.deployment, pytest.mark.slow, pytest.mark.timeout(900)]


def image_of(service: str) -> str:
    return "client" if service in CLIENTS else "server"


class Host(Machines):
    """One machine in place of all containers: their ports and folders are mapped to this machine's."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = {name: free_port() for name in CLIENTS}

    def command(self, service: str) -> list[str]:
        """Return the command of a container, without `python -m`."""
        entry = words(image_of(service), "ENTRYPOINT")
        assert entry[:2] == ["python", "-m"]
        line = entry[2:] + DEMO[service]["command"]
        return [self.here(service, word) for word in line]

    def here(self, service: str, word: str) -> str:
        """Translate a word of a container's command to this machine; server and run share a volume."""
        here = {
            "0.0.0.0:8000": f"0.0.0.0:{self.port}", "server:8000": f"127.0.0.1:{self.port}", "8000": str(self.port),
            "/state": str(self.folder / ("server" if service == "run" else service)),
            "9094": str(self.ports.get(service)),
        }  # fmt: skip
        return here.get(word, word)

    def healthy(self, service: str) -> bool:
        """Run the image's health check."""
        line = [self.here(service, word) for word in words(image_of(service), "HEALTHCHECK")]
        return subprocess.run([sys.executable, *line[1:]], cwd=PROJECT, check=False).returncode == 0


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        host.close()


def rounds(line: Sequence[str], number: int) -> list[str]:
    return [f"run.rounds={number}" if word.startswith("run.rounds=") else word for word in line]


def test_demo_runs_with_commands_of_images(host):
    assert not host.healthy("server")
    host.start("server", *host.command("server"))
    wait_until(lambda: host.healthy("server"), 300, "the server is not healthy")
    for name in CLIENTS:
        host.start(name, *host.command(name))
    for name in CLIENTS:
        wait_until(lambda name=name: host.healthy(name), 300, f"{name} is not healthy")
    done = host.run(*rounds(host.command("run"), 1), "-c", "run.name=demo", "-c", "data.limit=400", seconds=600)
    assert done.returncode == 0, done.stdout + done.stderr
    events = read_events(host.folder / "server" / "runs" / "demo" / "metrics.jsonl")
    assert [event["clients"] for event in events if event["event"] == "round"] == [{"1": 1, "2": 1, "3": 1, "4": 1}]
    for name in [*CLIENTS, "server"]:
        assert host.stop(name) == 0

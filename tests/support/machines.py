"""Machines for tests: the launchers as a user types them, each with its own process and folder.

With hosts (network namespaces), each process runs on the host of its name, or on the server's host.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.flower.processes import PROJECT, end
from tests.support.deployment import free_port, wait_until
from tests.support.namespaces import Host


class Machines:
    """Launchers by name; `close` ends every process."""

    def __init__(self, folder: Path, hosts: Mapping[str, Host] | None = None) -> None:
        self.folder, self.hosts = folder, hosts or {}
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *words: str, **env: str) -> "subprocess.Popen[bytes]":
        """Start `python -m WORDS` in the background."""
        with self.log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self._prefix(name), sys.executable, "-m", *words],
                cwd=PROJECT, env=self._env() | env, stdout=log, stderr=log,
            )  # fmt: skip
        return self.processes[name]

    def run(self, *words: str, seconds: float = 240, **env: str) -> "subprocess.CompletedProcess[str]":
        """Run `python -m WORDS` to its end."""
        return subprocess.run(
            [*self._prefix("server"), sys.executable, "-m", *words], cwd=PROJECT, env=self._env() | env,
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip

    def log(self, name: str) -> Path:
        """Return the file with the output of a process."""
        return self.folder / f"{name}.log"

    def wait_for(self, name: str, text: str, seconds: float = 120) -> None:
        """Wait until a process has printed a text."""
        wait_until(lambda: text in self.log(name).read_text(), seconds, f"no {text!r} in {self.log(name)}")

    def stop(self, name: str) -> int:
        """Send SIGTERM as a service manager does; return the exit code."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=60)

    def close(self) -> None:
        """End all processes, the server last."""
        for process in reversed(self.processes.values()):
            end(process)

    def _prefix(self, name: str) -> Sequence[str]:
        host = self.hosts.get(name) or self.hosts.get("server")
        return ["ip", "netns", "exec", host.namespace] if host else []

    def _env(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k != "FLWR_HOME"} | {"FLWR_HOME": str(self.folder / ".flwr")}


def settings(*pairs: str) -> Sequence[str]:
    """Return `key=value` pairs as `-c` options."""
    return [word for pair in pairs for word in ("-c", pair)]

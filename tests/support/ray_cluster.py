"""Ray clusters for tests: nodes in network namespaces, each with its own address, /tmp and Flower home.

The head shares this machine's file system; every other node sees an empty /tmp, so it has neither the head's files nor
its runs. What all nodes see is below `shared`.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.flower.processes import PROJECT, environment
from tests.support.deployment import wait_until
from tests.support.namespaces import Host, network

PORT = 6390
HEAD, OTHER = "head", "other"
TOKEN = "auth_token"  # Ray's, the same for all nodes


@dataclass
class RayCluster:
    """A head and other nodes with one core each; `run` starts a simulation on the head."""

    folder: Path  # the head's, below /tmp
    shared: Path  # seen by all nodes
    hosts: Mapping[str, Host]
    logs: dict[str, Path] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The head's address, for `--ray`."""
        return f"{self.hosts[HEAD].address}:{PORT}"

    def start(self, name: str, before: Sequence[str] = ()) -> None:
        """Start a node and wait until it has joined; `before` are shell commands inside the node's mount namespace."""
        host, head = self.hosts[name], name == HEAD
        where = ["--head", f"--port={PORT}"] if head else [f"--address={self.address}"]
        command = [
            str(Path(sys.executable).parent / "ray"), "start", *where, f"--node-ip-address={host.address}",
            "--num-cpus=1", "--num-gpus=0", "--object-store-memory=100000000", "--disable-usage-stats", "--block",
        ] + ["--include-dashboard=false"] * head  # fmt: skip
        mounts = [] if head else ["mount -t tmpfs none /tmp"]
        script = "; ".join([*mounts, f"hostname {name}", *before, 'exec "$@"'])
        env = self._env(self.folder / ".flwr" if head else Path("/tmp/node/.flwr"))
        self.logs[name] = self.folder / f"{name}.log"
        with self.logs[name].open("wb") as log:
            host.popen(
                ["unshare", "--mount", "--uts", "sh", "-ec", script, "sh", *command],
                env=env, cwd="/", stdout=log, stderr=log,
            )  # fmt: skip
        wait_until(lambda: "Ray runtime started" in self.logs[name].read_text(), 90, f"{name}: see {self.logs[name]}")

    def clients(self, name: str, run: str) -> Path:
        """Return the folder of a run's clients on a node, as this process sees it."""
        home = self.folder if name == HEAD else Path(f"/proc/{self._pids(name)[0]}/root/tmp/node")
        return home / ".cache" / "clients" / run

    def _pids(self, name: str) -> list[int]:
        command = ["ip", "netns", "pids", self.hosts[name].namespace]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return [int(pid) for pid in found.split()]

    def kill(self, name: str) -> None:
        """Kill (SIGKILL) all processes of a node."""
        for pid in self._pids(name):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)

    def popen(self, settings: Mapping[str, Any], *words: str) -> "subprocess.Popen[str]":
        """Start `python -m server run` on the head with these configuration keys."""
        pairs = [word for key, value in settings.items() for word in ("-c", f"{key}={json.dumps(value)}")]
        env = self._env(self.folder / ".flwr")
        return self.hosts[HEAD].popen(
            [sys.executable, "-m", "server", "run", *words, *pairs],
            cwd=PROJECT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, settings: Mapping[str, Any], *words: str) -> tuple[int, str, str]:
        """Run `python -m server run` on the head to its end; return its exit code, output and errors."""
        process = self.popen(settings, *words)
        out, err = process.communicate(timeout=280)
        return process.returncode, out, err

    def _env(self, home: Path) -> dict[str, str]:
        env = {k: v for k, v in environment(home).items() if k != "RAY_ADDRESS"} | {"HOME": str(home.parent)}
        return env | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.shared / TOKEN)}


@contextmanager
def ray_cluster(*names: str) -> Iterator[RayCluster]:
    """Yield a cluster on which a head and nodes of these names can be started; all of it is removed at the end."""
    folder, shared = (Path(tempfile.mkdtemp(prefix="ray-", dir=place)) for place in ("/tmp", "/var/tmp"))
    try:
        (shared / TOKEN).write_text(secrets.token_hex(32))
        with network([HEAD, *names]) as hosts:
            yield RayCluster(folder, shared, hosts)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(shared, ignore_errors=True)

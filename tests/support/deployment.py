"""Real processes for tests: a SuperLink and SuperNodes on loopback, and simulations on Ray."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from common.flower.processes import PROJECT, environment
from common.storage.run_files import read_events
from server.commands.bundle import app_files

PORTS = 16_000, 32_000
ASK_EVERY = 15.0  # seconds between queries of a run's status


class Deployment:
    """One SuperLink and its SuperNodes; `close` ends every process."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / ".flwr"
        self.home.mkdir(parents=True)
        self.env = environment(self.home)
        self.port = free_port()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.runs: dict[str, Path] = {}  # folder by Flower's run id
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "dep"\n[superlink.dep]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
        )
        self.start("superlink", "flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(self.port),
                   "--database", str(folder / "state.db"))  # fmt: skip
        superlink = self.processes["superlink"]
        wait_until(lambda: _listens(self.port) or superlink.poll() is not None, 120, "the SuperLink does not listen")
        assert superlink.poll() is None, (folder / "superlink.log").read_text()

    def node(self, name: str, node_config: str, port: int | None = None) -> None:
        """Start a SuperNode with this node configuration; `port` is that of a relay before the SuperLink."""
        self.start(name, "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port or self.port}",
                   "--port", str(free_port()), "--node-config", node_config)  # fmt: skip

    def start(self, name: str, *command: str) -> None:
        """Start a process in its own session, so that `kill` also ends its children."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.home, env=self.env, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process and its children."""
        process = self.processes.pop(name)
        os.killpg(process.pid, number)
        process.wait(timeout=30)

    def kill_server_app(self) -> None:
        """Kill (SIGKILL) the process in which the SuperLink runs the ServerApp."""
        children = psutil.Process(self.processes["superlink"].pid).children(recursive=True)
        found = [child for child in children if any("flwr-serverapp" in word for word in child.cmdline())]
        assert found, [child.cmdline() for child in children]
        for process in found:
            process.kill()

    def nodes(self) -> int:
        """Return how many nodes Flower has seen, including those that left."""
        return len(self._flwr("supernode", "list", "dep")["nodes"])

    def run(self, settings: Mapping[str, Any]) -> str:
        """Submit a run; return Flower's run id."""
        file = self.folder / "settings.toml"
        file.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        with app_files(self.folder) as app:
            answer = self._flwr("run", str(app), "dep", "-c", str(file))
        assert answer["success"], answer
        run_id = str(answer["run-id"])
        self.runs[run_id] = Path(settings.get("run.resume") or self.folder / "runs" / settings["run.name"])
        return run_id

    def wait(self, run_id: str, seconds: float) -> tuple[str, str]:
        """Wait for a run's end; return Flower's status and its details."""
        metrics, now = self.runs[run_id] / "metrics.jsonl", time.monotonic()
        end, ask = now + seconds, now + ASK_EVERY
        while (now := time.monotonic()) < end:
            # a query is a process, which takes computing time from the nodes: before the run's last event there are few
            if now > ask or any(event["event"] == "end" for event in read_events(metrics)):
                run = self._flwr("list", "dep", "--run-id", run_id)["runs"][0]
                if str(run["status"]).startswith("finished"):
                    return str(run["status"]), str(run.get("status-details"))
                ask = time.monotonic() + ASK_EVERY
            time.sleep(0.5)
        raise AssertionError(f"the run did not end within {seconds} s; see {self.folder}/*.log")

    def close(self) -> None:
        """End all processes."""
        for name in list(self.processes):
            self.kill(name)

    def _flwr(self, *arguments: str) -> dict[str, Any]:
        done = subprocess.run(
            ["flwr", *arguments, "--format", "json"],
            env=self.env,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "{" in done.stdout, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout[done.stdout.find("{") :])
        return found


def run_launcher(
    home: Path, settings: Mapping[str, Any], script: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m server run`, or a script in its place, with two workers in its own process."""
    pairs = [part for key, value in settings.items() for part in ("-c", f"{key}={json.dumps(value)}")]
    return subprocess.run(
        [sys.executable, *([str(script)] if script else ["-m", "server"]), "run", "--workers", "2", *pairs],
        cwd=PROJECT, env=os.environ | {"FLWR_HOME": str(home / ".flwr")},
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip


def free_port() -> int:
    """Return a free port below the range of outgoing connections, so that it is still free when it is bound."""
    while True:
        port = random.SystemRandom().randrange(*PORTS)
        with suppress(OSError), socket.create_server(("", port)):
            return port


def wait_until(condition: Any, seconds: float, message: str) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, message
        time.sleep(0.2)


def ended(process: int) -> bool:
    """Return whether a process has ended; it may have no parent that waits for it."""
    try:
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

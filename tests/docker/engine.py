"""The compose files on a Docker engine, as a project of the tests' own: services, volumes and measurements."""

import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from common.flower.processes import PROJECT

NAME = "earlybloom-test"
RUN = f"{NAME}-run"  # the container of a run that a test starts


def environment() -> dict[str, str]:
    """Return the environment in which Compose names its project as the tests do."""
    return os.environ | {"COMPOSE_PROJECT_NAME": NAME}


@cache
def missing() -> str:
    """Return why no engine can be used, "" if one can."""
    if not shutil.which("docker"):
        return "docker is not installed"
    done = docker("version", "--format", "{{.Server.Version}}", check=False)
    return "" if done.returncode == 0 else f"no Docker engine answers: {done.stderr.strip()}"


def docker(*words: str, seconds: float = 120, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run a command of Docker in the project's folder."""
    done = subprocess.run(
        ["docker", *words], cwd=PROJECT, capture_output=True, text=True, check=False, timeout=seconds,
        env=environment(),
    )  # fmt: skip
    assert not check or done.returncode == 0, (
        f"{words}: {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    )
    return done


def size_mb(image: str) -> float:
    """Return the size of an image."""
    return int(docker("image", "inspect", "--format", "{{.Size}}", image).stdout) / 1e6


@contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """Yield the most memory that each of the tests' containers takes in the block, in MB, as the engine counts it."""
    found: dict[str, float] = {}
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(1.0):
            listed = docker("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}", check=False).stdout
            for name, used, *_ in map(str.split, listed.splitlines()):
                if name.startswith(NAME) and (most := megabytes(used)) is not None:
                    service = name.removeprefix(f"{NAME}-").removesuffix("-1")
                    found[service] = max(found.get(service, 0.0), most)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def megabytes(text: str) -> float | None:
    """Return an amount such as `966.2MiB` in MB; None for what the engine writes of a container that is starting."""
    found = re.fullmatch(r"([\d.]+)(B|KiB|MiB|GiB)", text)
    return float(found[1]) * {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[found[2]] / 1e6 if found else None


class Stack:
    """Containers of some compose files; `close` removes them and their volumes."""

    def __init__(self, *files: str) -> None:
        self.files = [word for file in files for word in ("-f", f"docker/{file}")]
        self.close()

    def compose(self, *words: str, seconds: float = 120, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run a command of Compose."""
        return docker("compose", *self.files, *words, seconds=seconds, check=check)

    def compose_background(self, *words: str) -> "subprocess.Popen[bytes]":
        """Start a command of Compose that lasts."""
        return subprocess.Popen(
            ["docker", "compose", *self.files, *words], cwd=PROJECT, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def up(self, *words: str, seconds: float = 600) -> "subprocess.CompletedProcess[str]":
        """Run the stack until its run ends, as the README does."""
        return self.compose("up", *words, "--abort-on-container-exit", "--exit-code-from", "run", seconds=seconds)

    def close(self) -> None:
        """Remove containers, networks and volumes."""
        docker("rm", "--force", RUN)
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "20")

    def container(self, service: str) -> str:
        """Return the id of a service's container, which may have ended."""
        return self.compose("ps", "--all", "--quiet", service).stdout.strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """Return what the engine says of a service's container."""
        (found,) = json.loads(docker("inspect", self.container(service)).stdout)
        return dict(found)

    def exit_code(self, service: str) -> int:
        """Return the exit code of a container that has ended."""
        state = self.inspect(service)["State"]
        assert state["Status"] == "exited", state
        return int(state["ExitCode"])

    def running(self, service: str) -> bool:
        """Return whether a service's container exists and runs."""
        return bool(self.container(service)) and self.inspect(service)["State"]["Status"] == "running"

    def stop(self, service: str) -> tuple[float, int]:
        """Stop a container by `docker stop`, with its default of 10 s; return the seconds and the exit code."""
        container, begun = self.container(service), time.monotonic()
        docker("stop", "--time", "10", container)
        return time.monotonic() - begun, self.exit_code(service)

    def kill(self, service: str) -> None:
        """Kill a container, all processes at once."""
        docker("kill", self.container(service))

    def events(self, run: str) -> list[dict[str, Any]]:
        """Return the events of a run so far, of which the last line may be incomplete."""
        lines = self.server("sh", "-c", f"cat /state/runs/{run}/metrics.jsonl 2>/dev/null || true").splitlines(True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rounds(self, run: str) -> list[dict[str, Any]]:
        """Return the complete rounds of a run."""
        return [event for event in self.events(run) if event["event"] == "round"]

    def server(self, *command: str) -> str:
        """Run a command in a container of the server's image, beside the server's volume."""
        words = ["run", "--rm", "--network", "none", "--entrypoint", command[0]]
        return docker(*words, "--volume", f"{NAME}_state:/state", "earlybloom-server", *command[1:]).stdout

    def kept(self, client: str) -> set[str]:
        """Return the files of arrays in a client's volume, each with its hash."""
        words = ["run", "--rm", "--network", "none", "--entrypoint", "find", "--volume", f"{NAME}_{client}:/state:ro"]
        files = ["/state", "-name", "*.safetensors", "-exec", "sha256sum", "{}", "+"]
        return set(docker(*words, "earlybloom-client", *files).stdout.splitlines())

    def submit(self, *words: str, seconds: float = 600, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run the app once more, with further options, as `run` does."""
        line = self.command("run")
        return self.compose("run", "--rm", "--no-deps", "run", *line, *words, seconds=seconds, check=check)

    def command(self, service: str) -> Sequence[str]:
        """Return a service's merged command."""
        return list(json.loads(self.compose("config", "--format", "json").stdout)["services"][service]["command"])

"""Replaces a container engine: each service of a compose file runs on its own host with its own root folder.

A service runs as the image's user. It has only the project files that the Dockerfile copies, the command, volumes and
service names of the compose file, and only Python's folder on its PATH. Unlike in a container, the packages are those
of the tests, the project is in its own folder instead of /app, and memory is not limited.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.flower.processes import PROJECT, end
from tests.docker.compose import DOCKER, copied, instructions, words
from tests.support.namespaces import Host

SYSTEM = ("bin", "sbin", "lib", "lib64", "usr")
PASSWD = "root:x:0:0::/root:/bin/sh\nbloom:x:{user}:{user}::/home/bloom:/bin/sh\n"
SHORT = re.compile(r"(?P<source>[^:]+):(?P<target>[^:]+)(:(?P<mode>ro))?")


class Containers:
    """Services of a compose file by name; `close` ends every process."""

    def __init__(self, folder: Path, services: Mapping[str, Any], hosts: Mapping[str, Host]) -> None:
        self.folder, self.services, self.hosts = folder, services, hosts
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        for image in ("client", "server"):
            for name in copied(image):
                self._copy(name, folder / image / name)

    def volume(self, name: str) -> Path:
        """Return a named volume's folder, which has the same owner as in the images."""
        folder = self.folder / "volumes" / name
        if not folder.exists():
            folder.mkdir(parents=True)
            os.chown(folder, self.user("server"), -1)
        return folder

    def user(self, service: str) -> int:
        """Return the id of a service's user."""
        user = self.services[service].get("user") or dict(instructions(self.image(service)))["USER"]
        return int(user)

    def image(self, service: str) -> str:
        """Return "client", "server" or the full name of another image."""
        return str(self.services[service]["image"]).removeprefix("earlybloom-")

    def line(self, service: str) -> list[str]:
        """Return the command of a service's container."""
        settings = self.services[service]
        entry = settings.get("entrypoint") or words(self.image(service), "ENTRYPOINT")
        return [*entry, *settings.get("command", [])]

    def start(self, service: str) -> None:
        """Start a service in the background."""
        with self.log(service).open("ab") as log:
            self.processes[service] = subprocess.Popen(
                self.inside(service, self.line(service)), stdout=log, stderr=log, start_new_session=True
            )

    def run(self, service: str, seconds: float) -> "subprocess.CompletedProcess[str]":
        """Run a service to its end."""
        return self.execute(service, self.line(service), seconds)

    def execute(self, service: str, command: Sequence[str], seconds: float) -> "subprocess.CompletedProcess[str]":
        """Run any command in a service's container."""
        return subprocess.run(
            self.inside(service, command), capture_output=True, text=True, check=False, timeout=seconds
        )

    def healthy(self, service: str) -> bool:
        """Run the image's health check; raise `AssertionError` if a started service has ended."""
        process = self.processes.get(service)
        assert not process or process.poll() is None, self.log(service).read_text()
        return self.execute(service, words(self.image(service), "HEALTHCHECK"), 60).returncode == 0

    def log(self, service: str) -> Path:
        """Return the file with the output of a service."""
        return self.folder / f"{service}.log"

    def stop(self, service: str) -> int:
        """Stop a service as the engine does, within its grace period; return the exit code."""
        process, settings = self.processes.pop(service), self.services[service]
        process.send_signal(signal.Signals[settings.get("stop_signal", "SIGTERM")])
        return process.wait(timeout=int(settings.get("stop_grace_period", "10s").removesuffix("s")))

    def close(self) -> None:
        """End all processes, the last one first."""
        for process in reversed(self.processes.values()):
            end(process)

    def inside(self, service: str, command: Sequence[str]) -> list[str]:
        """Return a command that makes the container's root folder in a namespace and runs `command` there."""
        user, ours = self.user(service), self.image(service) in ("client", "server")
        root = self.folder / "roots" / service
        root.mkdir(parents=True, exist_ok=True)
        binaries = str(Path(sys.executable).parent) if ours else "/usr/sbin:/usr/bin"
        image_env = dict(
            pair.split("=") for name, rest in instructions("server") if name == "ENV" for pair in rest.split()
        )
        env = {"PATH": binaries, "HOME": "/home/bloom", "OMP_NUM_THREADS": "1"} | (image_env if ours else {})
        script = [
            "set -e",
            f"mount -t tmpfs -o mode=755 tmpfs '{root}'",
            f"mkdir -m 1777 '{root}/tmp'",
            f"mkdir -p '{root}/home/bloom' && chown {user} '{root}/home/bloom'",
            *(line for source, target in self._mounts(service) for line in _bind(source, root, target)),
            f"exec chroot --userspec={user}:{user} --groups= '{root}' env -i -C '{PROJECT if ours else '/'}' "
            + " ".join(f"{key}='{value}'" for key, value in env.items())
            + ' "$@"',
        ]
        namespace = self.hosts[service].namespace
        return ["ip", "netns", "exec", namespace, "sh", "-c", "\n".join(script), "container", *command]

    def _mounts(self, service: str) -> list[tuple[Path, str]]:
        mounts = [(Path("/", name), f"/{name}") for name in (*SYSTEM, "proc", "dev", "sys") if Path("/", name).exists()]
        mounts.append((self._etc(service), "/etc"))
        if self.image(service) in ("client", "server"):
            mounts.append((self.folder / self.image(service), str(PROJECT)))
        mounts += [(Path(prefix), prefix) for prefix in dict.fromkeys((sys.base_prefix, sys.prefix))]
        for volume in self.services[service].get("volumes", []):
            mounts.append(self._volume_mount(volume))
        return mounts

    def _volume_mount(self, volume: Any) -> tuple[Path, str]:
        if not isinstance(volume, str):
            return self.volume(volume["source"]) / volume["volume"]["subpath"], volume["target"]
        found = SHORT.fullmatch(volume)
        assert found, volume
        source = found["source"]
        return (DOCKER / source).resolve() if source.startswith(".") else self.volume(source), found["target"]

    def _etc(self, service: str) -> Path:
        """Make a container's /etc, with the addresses of services on the same networks."""
        folder = self.folder / "etc" / service
        folder.mkdir(parents=True, exist_ok=True)
        mine = set(self.services[service].get("networks", []))
        near = [name for name in self.hosts if mine & set(self.services[name].get("networks", []))]
        lines = ["127.0.0.1 localhost", *(f"{self.hosts[name].address} {name}" for name in near)]
        (folder / "hosts").write_text("\n".join(lines) + "\n")
        (folder / "passwd").write_text(PASSWD.format(user=self.user("server")))
        (folder / "nsswitch.conf").write_text("hosts: files\npasswd: files\n")
        for name in ("ld.so.cache", "ssl"):
            if Path("/etc", name).exists() and not (folder / name).exists():
                self._copy(f"/etc/{name}", folder / name)
        return folder

    @staticmethod
    def _copy(name: str, target: Path) -> None:
        source = PROJECT / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "private"), dirs_exist_ok=True)
        else:
            shutil.copy(source, target)


def _bind(source: Path, root: Path, target: str) -> list[str]:
    place = f"{root}{target}"
    if source.is_symlink():  # /bin, on systems where it links into /usr
        return [f"ln -s '{source.readlink()}' '{place}'"]
    make = f"mkdir -p '{place}'" if source.is_dir() else f"mkdir -p \"$(dirname '{place}')\" && touch '{place}'"
    return [make, f"mount --rbind '{source}' '{place}'"]

"""Hosts as network namespaces, for tests and benchmarks: each has an address and a link with delay, loss and rate.

    with network(["server", "device"]) as hosts:
        hosts["device"].link(delay=0.01)
        hosts["device"].popen(["curl", hosts["server"].address])

Only the namespaces are touched. They are removed at the end, and their remaining processes are killed. `network` also
removes namespaces that killed processes left behind.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

PREFIX, INTERFACE = "earlybloom", "eth0"
TUN, WIRE = Path("/dev/net/tun"), Path(__file__).with_name("wire.py")
NUMBERS = count()  # of the networks that this process has made


@dataclass(frozen=True)
class Host:
    """A namespace with one interface."""

    namespace: str
    address: str
    port: int  # of the switch
    wire: subprocess.Popen[str]  # the switch

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on this host in its own session; options are those of `subprocess.Popen`."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], start_new_session=True, **options)

    def link(self, *, delay: float = 0.0, rate: float = 0.0, loss: float = 0.0) -> None:
        """Change both directions of this host's link for frames that are sent from now on.

        `delay`: seconds one way; `rate`: bits per second (0: unlimited); `loss`: share of frames.
        """
        change = {"port": self.port, "delay": delay, "rate": rate / 8, "loss": loss}
        assert self.wire.stdin and self.wire.stdout
        print(json.dumps(change), file=self.wire.stdin, flush=True)
        assert self.wire.stdout.readline() == "changed\n", "the switch has ended"


@cache
def namespaces_available() -> str:
    """Return why namespaces cannot be made here; empty if they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "network namespaces need `ip` (iproute2)"
    if not TUN.exists():
        return f"network namespaces need {TUN}"
    try:
        with network(["probe"]):
            return ""
    except (subprocess.CalledProcessError, AssertionError) as error:
        return f"network namespaces are not permitted: {getattr(error, 'stderr', '').strip() or error}"


@contextmanager
def network(names: Sequence[str]) -> Iterator[Mapping[str, Host]]:
    """Yield hosts by name, all on one switch. Host `names[i]` has the address 10.91.0.(i + 1).

    Raises `subprocess.CalledProcessError` if namespaces are not permitted.
    """
    _sweep()
    prefix = f"{PREFIX}-{os.getpid()}-{next(NUMBERS)}"
    with ExitStack() as stack:
        spaces = [f"{prefix}-{name}" for name in (*names, "wire")]
        for space in spaces:
            _ip("netns", "add", space)
            stack.callback(_remove, space)
        wire = stack.enter_context(_switch(spaces.pop(), [f"tap{port}" for port in range(len(names))]))
        hosts = {}
        for port, (name, space) in enumerate(zip(names, spaces, strict=True)):
            address = f"10.91.0.{port + 1}"
            _ip("-n", f"{prefix}-wire", "link", "set", f"tap{port}", "netns", space, "name", INTERFACE)
            _ip("-n", space, "address", "add", f"{address}/24", "dev", INTERFACE)
            for interface in ("lo", INTERFACE):
                _ip("-n", space, "link", "set", interface, "up")
            hosts[name] = Host(space, address, port, wire)
        yield hosts


@contextmanager
def _switch(namespace: str, interfaces: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    command = ["ip", "netns", "exec", namespace, sys.executable, str(WIRE), *interfaces]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as wire:
        assert wire.stdout and wire.stderr
        if wire.stdout.readline() != "ready\n":
            raise subprocess.CalledProcessError(wire.wait(), command, stderr=wire.stderr.read())
        yield wire  # leaving closes its stdin, which ends it


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _remove(namespace: str) -> None:
    for pid in _ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", namespace)


def _sweep() -> None:
    """Remove namespaces that killed processes left behind."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        words = name.split("-")
        if words[0] == PREFIX and words[1].isdecimal() and not Path("/proc", words[1]).exists():
            _remove(name)

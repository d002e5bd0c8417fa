"""Hosts as network namespaces of this machine, for tests and benchmarks: own addresses, delay, loss and rate per link.

    with network(["server", "device"]) as hosts:
        hosts["device"].link(delay=0.01)
        hosts["device"].popen(["curl", hosts["server"].address])

Nothing outside the namespaces is touched, and they are removed at the end with whatever still runs in them. Those of a
process that was killed are removed by the next one.
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
    port: int
    """Of the switch."""
    wire: subprocess.Popen[str]

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command here, in a session of its own; options are `subprocess.Popen`'s."""
        return subprocess.Popen(["ip", "netns", "exec", self.namespace, *command], start_new_session=True, **options)

    def link(self, *, delay: float = 0.0, rate: float = 0.0, loss: float = 0.0) -> None:
        """Change both directions of this host's link: seconds one way, bits per second (0: any), share of frames lost.

        It holds for frames that are sent from now on.
        """
        change = {"port": self.port, "delay": delay, "rate": rate / 8, "loss": loss}
        assert self.wire.stdin and self.wire.stdout
        print(json.dumps(change), file=self.wire.stdin, flush=True)
        assert self.wire.stdout.readline() == "changed\n", "the switch has ended"


@cache
def namespaces_available() -> str:
    """Return why there can be no namespaces here; empty if they can be made."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if not shutil.which("ip"):
        return "there is no `ip` (iproute2)"
    if not TUN.exists():
        return f"there is no {TUN}"
    try:
        with network(["probe"]):
            return ""
    except (subprocess.CalledProcessError, AssertionError) as error:
        return f"network namespaces are not permitted: {getattr(error, 'stderr', '').strip() or error}"


@contextmanager
def network(names: Sequence[str]) -> Iterator[Mapping[str, Host]]:
    """Yield hosts by name, all on one switch. Host `names[i]` has the address 10.91.0.(i + 1).

    Raises `subprocess.CalledProcessError` when that is not permitted.
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
        yield wire  # its stdin is closed at the end, which ends it


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _remove(namespace: str) -> None:
    for pid in _ip("netns", "pids", namespace).split():
        with suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "delete", namespace)


def _sweep() -> None:
    """Remove what processes left that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        words = name.split("-")
        if words[0] == PREFIX and words[1].isdecimal() and not Path("/proc", words[1]).exists():
            _remove(name)

"""Runs Flower's SuperNode and SuperExec with pauses that follow the traffic: prompt during a run, rare in between.

Both poll with `time.sleep`, at a fixed pace. Here their modules get a `sleep` of another pace, and the SuperNode wakes
the SuperExec when a message has come. If a module of another Flower uses `time` in another way, it keeps its own pace.

The more clients a run has, the longer a SuperNode pauses, so that many of them do not burden the SuperLink.
"""

import contextlib
import importlib
import inspect
import os
import random
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from select import select
from types import ModuleType
from typing import Any, Protocol

BELL = "EARLYBLOOM_BELL"  # environment variable: name of the SuperExec's socket
# Flower's pauses: of the SuperNode between two polls for messages, and between two looks for the reply
POLL, LOOK = 3.0, 0.5
SHARE = 0.1  # of the time since the last message: the pause
FIRST_POLL, FIRST_LOOK = 0.05, 0.01  # seconds; the shortest pauses
# The pause is no shorter than so many times the SuperLink's last answer took, at all and for each node of the run. So
# all polls together take a quarter of the SuperLink's time, unless that asks for more than the longest pause.
DUTY, DUTY_PER_NODE = 20, 4
CROWD = 100  # nodes that may all poll at Flower's pace; more poll more slowly
SLOWEST = 1.5  # times Flower's pause: a crowd's longest one; a live node has 10 s to answer, 2 of them for other things
SPREAD = 0.25  # share by which a pause is longer or shorter by chance, so that many nodes do not poll at one moment
IDLE = 20.0  # seconds between two polls of a SuperExec, at most
CONFIGURE = "get_fused_config_from_fab"  # Flower's function that returns a run's configuration to a node


class Pace(Protocol):
    """Stands for the module `time`."""

    def sleep(self, seconds: float) -> None:
        """Pause instead of Flower's pause of so many seconds."""


class NodePace:
    """The SuperNode's pauses."""

    def __init__(self, bell: str) -> None:
        self._bell = bell
        self._message = self._woke = time.monotonic()  # when the last message was seen, when the last pause ended
        self._polled = False  # whether that pause was one between polls
        self._answer = 0.0  # seconds that the SuperLink took to answer the last poll between two such pauses
        self._came: float | None = None  # when the message that is worked on came
        self.nodes = 0  # of the last run, at most; 0: not known

    def sleep(self, seconds: float) -> None:
        """Pause for a share of the time since the last message, or since the present one came."""
        now = time.monotonic()
        if seconds == POLL:
            self._came = None
            if self._polled:  # else most of the time since the last pause was the start's, or that of sending a reply
                self._answer = now - self._woke
            floor = max(FIRST_POLL, max(DUTY, DUTY_PER_NODE * self.nodes) * self._answer)
            ceiling = POLL * min(SLOWEST, max(1.0, self.nodes / CROWD))
            pause = min(ceiling, max(floor, SHARE * (now - self._message)))
            pause *= random.uniform(1 - SPREAD, 1 + SPREAD)
        elif seconds == LOOK:
            self._message = now
            if self._came is None:
                self._came = now
                _ring(self._bell)
            pause = min(LOOK, max(FIRST_LOOK, SHARE * (now - self._came)))
        else:
            pause = seconds
        time.sleep(pause)
        self._woke, self._polled = time.monotonic(), seconds == POLL

    def count_nodes(self, module: ModuleType) -> None:
        """Learn from every run that Flower's loop in this module meets how many nodes it may have: one per client."""
        fused: Callable[..., Mapping[str, Any]] | None = getattr(module, CONFIGURE, None)
        if fused is None:
            return

        def counting(*arguments: Any, **keywords: Any) -> Mapping[str, Any]:
            config = fused(*arguments, **keywords)
            clients = config.get("clients.count")
            self.nodes = clients if isinstance(clients, int) else 0
            return config

        setattr(module, CONFIGURE, counting)


class ExecPace:
    """The SuperExec's pauses, which the SuperNode's bell ends."""

    def __init__(self, bell: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{bell}")
        self._rung = time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Pause until the bell rings, no shorter than Flower, and for a share of the time since the bell last rang."""
        pause = max(seconds, min(IDLE, SHARE * (time.monotonic() - self._rung)))
        if select([self._socket], [], [], pause)[0]:
            self._socket.recv(1)
            self._rung = time.monotonic()


def _ring(bell: str) -> None:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ringing:
        ringing.setblocking(False)
        ringing.sendto(b"+", f"\0{bell}")


# command -> module with its loop, arguments of its sleeps, the pace, module and name of the command's function
COMMANDS: dict[str, tuple[str, set[str], Callable[[str], Pace], str, str]] = {
    "flower-supernode": (
        "flwr.supernode.start_client_internal", {"3", "0.5"}, NodePace, "flwr.supernode.cli", "flower_supernode",
    ),
    "flower-superexec": (
        "flwr.supercore.superexec.run_superexec", {"task_poll_interval"}, ExecPace, "flwr.supercore.cli",
        "flower_superexec",
    ),
}  # fmt: skip


def sleeps_as_expected(module: ModuleType, arguments: set[str]) -> bool:
    """Return whether a module uses `time` for nothing but sleeps with these arguments."""
    source = inspect.getsource(module)
    uses = set(re.findall(r"\btime\.(\w+)", source))
    return uses == {"sleep"} and set(re.findall(r"\btime\.sleep\((.*?)\)", source)) == arguments


def main() -> None:
    """Run the command that the first argument names; the others are its own."""
    name, *arguments = sys.argv[1:]
    loop, sleeps, pace, package, function = COMMANDS[name]
    sys.argv = [str(Path(sys.executable).parent / name), *arguments]
    module = importlib.import_module(loop)
    bell = os.environ.setdefault(BELL, f"earlybloom-{secrets.token_hex(8)}")
    if sys.platform == "linux" and sleeps_as_expected(module, sleeps):  # other systems have no sockets without files
        try:
            own = pace(bell)
            if isinstance(own, NodePace):
                own.count_nodes(module)
            module.time = own  # type: ignore[attr-defined]
        except OSError as error:
            print(f"{name} keeps Flower's pace: {error}", file=sys.stderr)
    sys.exit(getattr(importlib.import_module(package), function)())


if __name__ == "__main__":
    main()

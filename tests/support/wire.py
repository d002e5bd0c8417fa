"""A switch in user space between network namespaces, with delay, rate and loss on each host's link.

`tests.support.namespaces` starts it as a script, with one interface (TAP) per host. It replaces `tc netem`, which many
kernels lack. A line on stdin changes a link, `{"port": 0, "delay": seconds, "rate": bytes/s, "loss": share}`, and gets
a line in reply; the end of stdin ends the switch. A frame passes its sender's link, then its receiver's.
"""

import fcntl
import heapq
import json
import os
import random
import select
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x0002 | 0x1000
BACKLOG = 1.0  # longest wait for a slow link in seconds; later frames are dropped, as by a full queue
LARGEST = 2048  # bytes of a frame


@dataclass
class Line:
    """One direction of a link: sends frames one after another at its rate, then delays each."""

    delay: float = 0.0  # seconds
    rate: float = 0.0  # bytes per second; 0: unlimited
    loss: float = 0.0  # share of frames
    free: float = 0.0  # time when the last frame will have been sent

    def arrival(self, size: int, now: float, chance: random.Random) -> float | None:
        """Return the time when a frame arrives, None if it is lost."""
        if chance.random() < self.loss or self.free - now > BACKLOG:
            return None
        if self.rate:
            self.free = now = max(self.free, now) + size / self.rate
        return now + self.delay


@dataclass
class Port:
    """A host's interface and its link."""

    descriptor: int
    up: Line = field(default_factory=Line)
    down: Line = field(default_factory=Line)


class Switch:
    """Learns the address of each host, and forwards every frame when it is due."""

    def __init__(self, ports: list[Port]) -> None:
        self.ports, self.homes, self.chance = ports, dict[bytes, int](), random.Random(1)
        # (time due, number, source port while on that link, target port, frame)
        self.waiting: list[tuple[float, int, int | None, int, bytes]] = []
        self.numbers = count()

    def take(self, source: int, frame: bytes, now: float) -> None:
        """Put an incoming frame on its sender's link."""
        self.homes[frame[6:12]] = source
        arrival = self.ports[source].up.arrival(len(frame), now, self.chance)
        if arrival is not None:
            heapq.heappush(self.waiting, (arrival, next(self.numbers), source, -1, frame))

    def run_until(self, now: float) -> float | None:
        """Move every frame that is due; return the seconds to the next one, None without any."""
        while self.waiting and self.waiting[0][0] <= now:
            when, _, source, target, frame = heapq.heappop(self.waiting)
            if source is None:
                with suppress(OSError):  # an interface that is down, or a full queue
                    os.write(self.ports[target].descriptor, frame)
                continue
            home = self.homes.get(frame[:6])
            for port in range(len(self.ports)) if home is None else (home,):
                arrival = self.ports[port].down.arrival(len(frame), when, self.chance)
                if port != source and arrival is not None:
                    heapq.heappush(self.waiting, (arrival, next(self.numbers), None, port, frame))
        return max(0.0, self.waiting[0][0] - now) if self.waiting else None


def interface(name: str) -> int:
    """Return the descriptor of a new interface of this name."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADER))
    return descriptor


def main(names: list[str]) -> None:
    """Switch until stdin ends."""
    with suppress(PermissionError):
        # it computes little, and a busy machine must not add to the delays
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    switch = Switch([Port(interface(name)) for name in names])
    print("ready", flush=True)
    ports = {port.descriptor: number for number, port in enumerate(switch.ports)}
    wait = None
    while True:
        readable, _, _ = select.select([sys.stdin, *ports], [], [], wait)
        for source in readable:
            if source is sys.stdin:
                if not (line := sys.stdin.readline()):
                    return
                change = json.loads(line)
                port = switch.ports[change.pop("port")]
                port.up, port.down = Line(**change), Line(**change)
                print("changed", flush=True)
                continue
            with suppress(BlockingIOError):
                while True:
                    switch.take(ports[source], os.read(source, LARGEST), time.monotonic())
        wait = switch.run_until(time.monotonic())


if __name__ == "__main__":
    main(sys.argv[1:])

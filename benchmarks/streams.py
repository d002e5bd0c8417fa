"""What the rounds' stream itself takes: many nodes with small models, and few with large ones.

Run `python -m benchmarks.streams`. The nodes are processes that return each model as it came; the server sends every
round's model to all of them and takes the replies one by one, as a strategy does. Everything is on loopback, so the
link's speed is that of the cores, but for the cases with a rate: their processes have a loopback of their own, which
both directions share. The same bytes through a bare socket, both ways, stand beside it. Rates need root and `tc`.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, Message, RecordDict

from benchmarks.common import save
from benchmarks.process_memory import memory
from client.warm.rounds import RoundStreams
from common.config import RunConfig, load_config
from common.flower.local_grid import LocalGrid
from common.messages.protocol import TRAIN
from common.rpc.rounds import Announcement
from common.sections.stream import StreamSettings
from server.rounds.grid import StreamGrid, serving
from strategies.engine.messaging import exchange

LARGE = 100 << 20
DEADLINE = 300.0  # seconds


class Case(NamedTuple):
    """How many nodes return a model of how many bytes, and over which link."""

    nodes: int
    size: int
    rounds: int
    room: int = 0  # `stream.memory`
    mbit: int = 0  # the link's rate; 0: the cores'

    @property
    def prefix(self) -> list[str]:
        """The words before a command that runs on this link."""
        limit = f"ip link set lo up && tc qdisc add dev lo root tbf rate {self.mbit}mbit burst 1mb latency 50ms"
        return ["unshare", "--net", "sh", "-c", f'{limit} && exec "$@"', "sh"] if self.mbit else []


CASES = {
    "2 nodes, small": Case(2, 1 << 10, 50),
    "20 nodes, small": Case(20, 1 << 10, 50),
    "2 nodes, 100 MB": Case(2, LARGE, 5),
    "2 nodes, 100 MB, a link of 1 Gbit/s": Case(2, LARGE, 5, mbit=1000),
    "8 nodes, 100 MB": Case(8, LARGE, 5),
    "8 nodes, 100 MB, `stream.memory=250`": Case(8, LARGE, 5, room=250),
}
HOW = ("plain", "TLS", "bare socket")


class Processes(LocalGrid):
    """Stands for Flower: hands each announcement to a process."""

    def __init__(self, number: int) -> None:
        super().__init__(lambda message, _: message, [{"client-id": n} for n in range(number)])  # type: ignore[arg-type]
        command = [sys.executable, "-m", "benchmarks.streams", "--node"]
        self.processes = {
            node: subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) for node in self.contexts
        }

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Write the announcements."""
        for message in messages:
            pipe = self.processes[message.metadata.dst_node_id].stdin
            assert pipe is not None
            pipe.write(json.dumps(dict(message.content["rounds"])).encode() + b"\n")
            pipe.flush()
        return [""] * len(list(messages))

    def close(self) -> None:
        """End the processes."""
        for process in self.processes.values():
            process.kill()
            process.wait()


def node() -> None:
    """Return each model as it came."""
    streams = RoundStreams(lambda kind, content, node: content)
    content = RecordDict()
    Announcement(**json.loads(sys.stdin.readline())).attach(content)
    streams.open(content, {})
    while streams.busy():
        streams.handle()


def measure(case: Case, how: str) -> dict[str, float]:
    """Return the median seconds of a round and, of the stream, the memory that the server took beyond one model."""
    if how == "bare socket":
        return {"seconds": statistics.median(bare_socket(2 * case.nodes * case.size) for _ in range(case.rounds))}
    values = {"stream.tls": how == "TLS", "stream.memory": case.room}
    config = RunConfig(settings=load_config(values, [StreamSettings]).settings)
    grid, seconds = Processes(case.nodes), list[float]()
    try:
        with serving(grid, config) as streams:
            streams.push_messages([Message(RecordDict(), dst_node_id=n, message_type=TRAIN) for n in grid.contexts])
            while not all(map(streams.service.connected, grid.contexts)):
                time.sleep(0.1)
            model = Array(np.zeros(case.size, np.uint8))
            before = memory("VmRSS")
            for _ in range(case.rounds):
                seconds.append(_round(streams, model))
            peak = memory("VmHWM") - before
    finally:
        grid.close()
    return {"seconds": statistics.median(seconds), "server_peak_mb": peak / (1 << 20)}


def _round(grid: StreamGrid, model: Array) -> float:
    started = time.perf_counter()
    messages = [
        Message(RecordDict({"model": ArrayRecord({"0": model})}), dst_node_id=node, message_type=TRAIN, ttl=DEADLINE)
        for node in grid.get_node_ids()
    ]
    came = sum(not reply.has_error() for reply in exchange(grid, messages, DEADLINE))
    if came != len(messages):
        raise RuntimeError(f"{came} of {len(messages)} replies came")
    return time.perf_counter() - started


def bare_socket(size: int) -> float:
    """Return the seconds of as many bytes through a socket on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_receive, args=(listener, size))
        thread.start()
        started = time.perf_counter()
        with socket.create_connection(listener.getsockname()) as sending:
            sending.sendall(bytes(size))
        thread.join()
        return time.perf_counter() - started


def _receive(listener: socket.socket, size: int) -> None:
    connection, _ = listener.accept()
    with connection:
        while size > 0:
            size -= len(connection.recv(1 << 20))


def main() -> None:
    """Measure all cases."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--node", action="store_true", help="be a node")
    parser.add_argument("--case", nargs=2, metavar=("CASE", "HOW"), help="measure one case in this process")
    options = parser.parse_args()
    if options.node:
        node()
        return
    if options.case:
        name, how = options.case
        print(json.dumps(measure(CASES[name], how)))
        return
    if os.geteuid() or not shutil.which("tc"):
        raise SystemExit("a link with a rate needs root and `tc` (iproute2)")
    result: dict[str, Any] = {}
    for name, case in CASES.items():
        for how in HOW:
            # a process of its own: what an earlier case has freed would hide what this one takes
            command = [*case.prefix, sys.executable, "-m", "benchmarks.streams", "--case", name, how]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            title = name if how == "plain" else f"{name}, {how}"
            result[title] = json.loads(done.stdout.splitlines()[-1])
            print(title, result[title], flush=True)
    save("streams", result)


if __name__ == "__main__":
    main()

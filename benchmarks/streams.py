"""What the rounds' stream itself takes: many nodes with small models, and few with large ones.

Run `python -m benchmarks.streams`. The nodes are processes that return each model as it came; the server sends every
round's model to all of them and takes the replies one by one, as a strategy does. Everything is on loopback, so the
link's speed is that of the cores: the same bytes through a bare socket, both ways, stand beside it.
"""

import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

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
# nodes, bytes of a model, rounds, `stream.memory`
CASES = {
    "2 nodes, small": (2, 1 << 10, 50, 0),
    "20 nodes, small": (20, 1 << 10, 50, 0),
    "2 nodes, 100 MB": (2, LARGE, 5, 0),
    "8 nodes, 100 MB": (8, LARGE, 5, 0),
    "8 nodes, 100 MB, `stream.memory=250`": (8, LARGE, 5, 250),
}
DEADLINE = 300.0  # seconds


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


def measure(nodes: int, size: int, rounds: int, room: int, *, tls: bool) -> dict[str, float]:
    """Return the median seconds of a round and the memory that the server took beyond one model."""
    config = RunConfig(settings=load_config({"stream.tls": tls, "stream.memory": room}, [StreamSettings]).settings)
    grid, seconds = Processes(nodes), list[float]()
    try:
        with serving(grid, config) as streams:
            streams.push_messages([Message(RecordDict(), dst_node_id=n, message_type=TRAIN) for n in grid.contexts])
            while not all(map(streams.service.connected, grid.contexts)):
                time.sleep(0.1)
            model = Array(np.zeros(size, np.uint8))
            before = memory("VmRSS")
            for _ in range(rounds):
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
    if sys.argv[1:] == ["--node"]:
        node()
        return
    result: dict[str, Any] = {}
    for name, (nodes, size, *others) in CASES.items():
        for tls in (False, True):
            # a process of its own: what an earlier case has freed would hide what this one takes
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
                found = fresh.submit(measure, nodes, size, *others, tls=tls).result()
            result[f"{name}{', TLS' if tls else ''}"] = found
            print(name, "TLS" if tls else "", found, flush=True)
        result[f"{name}, bare socket"] = {"seconds": bare_socket(2 * nodes * size)}
        print(name, "bare socket", result[f"{name}, bare socket"], flush=True)
    save("streams", result)


if __name__ == "__main__":
    main()

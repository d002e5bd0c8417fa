"""What the polls of many nodes cost a SuperLink: requests, its share of a core, how long a poll takes meanwhile.

    flower      every node polls each 3 s
    answers     polls follow the traffic, and are rarer when the SuperLink answers slowly
    nodes       and when the run has many nodes: what `client/warm/pace.py` does

Nodes register by Flower's own connection; one process has a thread for each, since as many SuperNodes would fill the
memory. All are sent a message at once, which each finds at its next poll, within 3 s: then they poll as often as they
ever do. The latency is that of one more node, in this process. "alone" is the SuperLink with that node only. Then a run
of two real SuperNodes goes by stream, alone and beside 100 such nodes, which have no clients.

Run `python -m benchmarks.nodes`; about twenty minutes.
"""

import argparse
import multiprocessing
import os
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from benchmarks.common import save
from client.warm import pace
from client.warm.flower_shim import environment
from common.messages.protocol import NodeReport, pack_report
from common.storage.run_files import read_events
from tests.support.deployment import Deployment

CASES = ("flower", "answers", "nodes")
PROBE = 0.2  # seconds between two polls of the node whose latency is measured
SETTLE, IDLE = 5.0, 10.0  # seconds after the start of the SuperLink, and of looking at it without the others
WINDOWS = {"message": (0.0, 10.0), "settled": (42.0, 57.0)}  # seconds after the message: begin, end
REAL, OTHERS = 2, (0, 100)  # SuperNodes of a run, and nodes beside them
SETTINGS = {
    "run.name": "beside", "run.strategy": "eefl", "run.rounds": 3, "clients.count": REAL, "clients.per-round": REAL,
    "network.name": "lenet", "data.limit": 60, "server.evaluate-every": 0, "round.min-nodes": REAL,
}  # fmt: skip


def poll(address: str, nodes: int, case: str, signals: Any, results: Any) -> None:
    """Keep nodes that poll until the end; then send when their polls ended."""
    moments: list[float] = []
    if case == "answers":
        pace.SPREAD = 0.0
    threads = [threading.Thread(target=_node, args=(address, nodes, case, signals, moments)) for _ in range(nodes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    results.send(moments)


def _node(address: str, nodes: int, case: str, signals: Any, moments: list[float]) -> None:
    registered, message, end = signals
    own = pace.NodePace("nothing-listens")
    own.nodes = nodes if case == "nodes" else 0
    sleep = time.sleep if case == "flower" else own.sleep
    with http_request_response(address, insecure=True) as (_, receive, *calls):
        registered.release()
        message.wait()
        time.sleep(random.uniform(0, pace.POLL))
        sleep(pace.LOOK)
        while not end.is_set():
            found = receive()
            moments.append(time.monotonic())
            if found:
                sleep(pace.LOOK)
                _report_no_clients(*found, *calls)
            else:
                sleep(pace.POLL)


def _report_no_clients(
    message: Message, tree: Any, send: Any, _run: Any, _fab: Any, pull: Any, push: Any, confirm: Any
) -> None:
    run = message.metadata.run_id
    pull_objects([part.object_id for part in iterate_object_tree(tree)], lambda name: pull(run, name))
    confirm(run, message.metadata.message_id)
    reply = Message(pack_report(NodeReport(partition=0, roaming=False)), reply_to=message)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    wanted, session = send(reply, get_object_tree(reply), 0.0)
    for name, part in get_all_nested_objects(reply).items():
        if name in wanted:
            push(run, session, name, part.deflate())


class Polling:
    """A process with nodes that poll; the message is sent to them at the start."""

    def __init__(self, address: str, nodes: int, case: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._signals = context.Semaphore(0), context.Event(), context.Event()
        self._results, theirs = context.Pipe(duplex=False)
        self._process = context.Process(target=poll, args=(address, nodes, case, self._signals, theirs), daemon=True)
        self._process.start()
        for _ in range(nodes):
            if not self._signals[0].acquire(timeout=120):
                raise RuntimeError("the nodes did not register")
        self._signals[1].set()
        self.began = time.monotonic()

    def end(self) -> list[float]:
        """Return when each poll ended, in seconds after the message."""
        self._signals[2].set()
        moments = self._results.recv()
        self._process.join()
        return [moment - self.began for moment in moments]


@contextmanager
def probing(address: str) -> Iterator[list[tuple[float, float]]]:
    """Poll as one more node, and note when each poll ended and how long it took."""
    polls: list[tuple[float, float]] = []
    ended = threading.Event()

    def run() -> None:
        with http_request_response(address, insecure=True) as (_, receive, *_others):
            while not ended.wait(PROBE):
                began = time.monotonic()
                receive()
                polls.append((time.monotonic(), time.monotonic() - began))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield polls
    finally:
        ended.set()
        thread.join()


def share(deployment: Deployment, until: float) -> float:
    """Wait, and return the share of a core that the SuperLink and the processes that it started take meanwhile."""

    def spent() -> float:
        total, superlink = 0.0, psutil.Process(deployment.processes["superlink"].pid)
        for process in (superlink, *superlink.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])
        return total

    began, before = time.monotonic(), spent()
    time.sleep(until - began)
    return (spent() - before) / (time.monotonic() - began)


def measure(nodes: int, case: str) -> dict[str, Any]:
    """Return what so many nodes cost in each window."""
    shares: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder) / "deployment")
        try:
            with probing(address := f"127.0.0.1:{deployment.port}") as polls:
                time.sleep(SETTLE)
                alone = share(deployment, time.monotonic() + IDLE)
                polling = Polling(address, nodes, case)
                for name, (begin, end) in WINDOWS.items():
                    time.sleep(max(0.0, polling.began + begin - time.monotonic()))
                    shares[name] = share(deployment, polling.began + end)
                load = os.getloadavg()[0]
                moments = polling.end()
        finally:
            deployment.close()
    result: dict[str, Any] = {"load": load, "alone": {"share_of_a_core": alone}}
    for name, (begin, end) in WINDOWS.items():
        took = [seconds for moment, seconds in polls if begin <= moment - polling.began < end]
        result[name] = {
            "polls_per_second": sum(begin <= moment < end for moment in moments) / (end - begin),
            "share_of_a_core": shares[name],
            "poll_median_s": statistics.median(took),
            "poll_p95_s": statistics.quantiles(took, n=20)[-1],
        }
    return result


def run_beside(nodes: int) -> dict[str, Any]:
    """Run two real SuperNodes by stream beside others; return the seconds of the first round, of the others, of all."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = Deployment(Path(folder) / "deployment")
        deployment.env = environment(deployment.env, Path(folder) / "bin")
        polling = Polling(f"127.0.0.1:{deployment.port}", nodes, "nodes") if nodes else None
        try:
            for node in range(REAL):
                deployment.node(f"node-{node}", f"client-id={node} depth={2 * node + 1}")
            began = time.monotonic()
            status, details = deployment.wait(deployment.run(SETTINGS), 240)
            whole = time.monotonic() - began
            if status != "finished:completed":
                raise RuntimeError(details)
            events = list(read_events(deployment.folder / "runs" / "beside" / "metrics.jsonl"))
        finally:
            if polling:
                polling.end()
            deployment.close()
    first, *rounds = [event["seconds"]["round"] for event in events if event["event"] == "round"]
    return {"first_round_s": first, "round_s": statistics.median(rounds), "whole_s": whole, "load": os.getloadavg()[0]}


def runs(repeats: int) -> dict[str, Any]:
    """Return the medians of runs alone and beside others, which take turns."""
    found: dict[str, list[dict[str, Any]]] = {f"run beside {nodes}": [] for nodes in OTHERS}
    for _ in range(repeats):
        for nodes in OTHERS:
            found[f"run beside {nodes}"].append(run_beside(nodes))
            print("run beside", nodes, found[f"run beside {nodes}"][-1], flush=True)
    return {
        case: {"first_rounds_s": [run["first_round_s"] for run in measured]}
        | {name: statistics.median(run[name] for run in measured) for name in measured[0]}
        for case, measured in found.items()
    }


def main() -> None:
    """Measure all numbers of nodes and cases in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", default="2,100,300")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--repeats", type=int, default=3, help="of the runs")
    options = parser.parse_args()
    result: dict[str, Any] = {}
    for nodes in options.nodes.split(","):
        for case in options.cases.split(","):
            result[f"{nodes} {case}"] = measured = measure(int(nodes), case)
            print(nodes, case, measured, flush=True)
    print(save("nodes", {**result, "repeats": options.repeats, **runs(options.repeats)}))


if __name__ == "__main__":
    main()

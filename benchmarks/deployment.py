"""Where the seconds of a deployed round go: a SuperLink and two SuperNodes on loopback, next to no training.

    flower     as Flower starts it: a new process imports Flower, torch and the images' decoder for every message
    worker     that process hands the work to a worker that stays beside the SuperNode (`client/warm/worker.py`)
    stand-in   the process is a fork of one that stays (`client/warm/flower_shim.py`), and Flower's polls follow the
               traffic (`client/warm/pace.py`)
    stream     rounds go by a stream of our own, which one of Flower's messages opens; `stream-tls` encrypts it
    launcher   `python -m client start` starts the SuperNode and stays beside it, as on a device; rounds by the stream

In the first three the server polls for replies every 0.25 s, where Flower's own loop polls every 3 s. Run
`python -m benchmarks.deployment`; cases take turns. With `--idle` it measures devices without work instead. The phases
are read off the SuperNodes' log lines as these appear, from one sent reply to the next:

    poll       until the SuperNode polls for a message; it polls 3 s after it last found none
    start      until the ClientApp's process runs: SuperExec's poll, then starting it
    pull       until the work is handed over: the message's objects, the app's bundle
    hand over  to the worker and back
    work       training and packing; in the case `flower` also importing torch
    reply      until the SuperNode sees the reply: it looks every 0.5 s
    send       until the SuperLink has the reply
    receive    until the SuperNode has all of the message's objects; runs beside `start` and `pull`

`poll` needs the SuperNode, which `client/warm/pace.py` runs: it polls soon after a message and rarely without any. With
`--idle --cases flower,stream,launcher` the last case has also what the launcher takes of a core and of the memory.
Messages still cost a process and a request per array, hop after hop. By a stream (`client/warm/rounds.py`) neither is
left: one of Flower's messages opens it, and orders and replies of all rounds go through it.
"""

import argparse
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import save
from client.warm.flower_shim import environment
from common.storage.run_files import read_events
from tests.support.deployment import Deployment, wait_until
from tests.support.relay import Relay

NODES, WARM_UP = 2, 2
FASTER = 10  # times as many rounds by a stream
SETTLE, IDLE = 40.0, 60.0  # seconds after a run: until a device's polls are at their rarest, and of looking at it
SETTINGS = {
    "run.name": "benchmark", "run.strategy": "eefl", "clients.count": NODES, "clients.per-round": NODES,
    "network.name": "lenet", "data.limit": 60, "server.evaluate-every": 0, "round.min-nodes": NODES,
}  # fmt: skip
ANSWERED = re.compile(r"train answered in (?P<whole>[0-9.]+) s, (?P<work>[0-9.]+) s")
MARKS = {
    "Receiving: train message": "received", "Received successfully": "complete", "Start `flwr-clientapp`": "started",
    "train answered": "answered", "Sending: train message": "sending", "Sent successfully": "sent",
}  # fmt: skip
STREAMS: dict[str, dict[str, Any]] = {"stream": {}, "stream-tls": {"stream.tls": True}, "launcher": {}}
PHASES = ("poll", "start", "pull", "hand over", "work", "reply", "send", "receive")


class Watched(Deployment):
    """A deployment that notes when the SuperNodes' log lines appear, and counts their requests."""

    def __init__(self, folder: Path) -> None:
        self.lines: dict[str, list[tuple[float, str]]] = {}
        self.sessions: set[int] = set()  # of the SuperNodes and of what they started, as far as seen
        self.requests = 0  # from the SuperNodes to the SuperLink
        super().__init__(folder)

    def start(self, name: str, *command: str) -> None:
        """Start a process, and watch its output if it is a SuperNode."""
        if name == "superlink":
            return super().start(name, *command)
        process = subprocess.Popen(
            command, cwd=self.home, env=self.env, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self.processes[name], self.lines[name] = process, []
        threading.Thread(target=self._watch, args=(name, process), daemon=True).start()

    def cpu(self) -> float:
        """Return the CPU seconds of the SuperNodes and of all processes that they started, workers included."""
        total = 0.0
        for process in self._everything():
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])  # with those of children that have ended
        return total

    def memory(self) -> dict[str, float]:
        """Return the MB of memory that a node's first process, launcher or SuperNode, has to itself, and those of all.

        Pages that processes share count in the sum by their share. Both are means over the nodes.
        """
        own = [psutil.Process(self.processes[name].pid).memory_full_info().uss for name in self.lines]
        everything = [process.memory_full_info().pss for process in self._everything()]
        return {"first_process_mb": sum(own) / NODES / 1e6, "all_mb": sum(everything) / NODES / 1e6}

    def count(self, data: bytes) -> None:
        """Count the requests in what a SuperNode sends."""
        self.requests += data.count(b"POST /")

    def _everything(self) -> list[psutil.Process]:
        """Return the SuperNodes, or their launchers, and all processes that they started.

        Flower starts its executors in sessions of their own, which may outlive the process between.
        """
        started = [process for name in self.lines for process in _family(self.processes[name].pid)]
        self.sessions |= {session for process in started if (session := _session(process)) is not None}
        return [process for process in psutil.process_iter() if _session(process) in self.sessions]

    def _watch(self, name: str, process: subprocess.Popen[bytes]) -> None:
        for line in process.stdout or ():
            self.lines[name].append((time.monotonic(), line.decode(errors="replace").rstrip()))


def _family(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except ProcessLookupError:
        return None


@contextmanager
def deployed(case: str) -> Iterator[Watched]:
    """Start a SuperLink and its SuperNodes, whose requests pass a relay that counts them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        deployment = Watched(folder / "deployment")
        stack.callback(deployment.close)
        relay = stack.enter_context(Relay(deployment.port, deployment.count))
        if case in ("stand-in", *STREAMS):
            deployment.env = environment(deployment.env, folder / "bin")
        for node in range(NODES):
            name, depth = f"node-{node}", 2 * node + 1
            if case == "launcher":
                deployment.start(
                    name, sys.executable, "-m", "client", "start", "--superlink", f"127.0.0.1:{relay.port}",
                    "--client-id", str(node), "--capacity", f"depth={depth}", "--state", str(folder / name),
                )  # fmt: skip
            else:
                worker = "false" if case == "flower" else "true"
                deployment.node(name, f"client-id={node} depth={depth} worker={worker}", relay.port)
        yield deployment


def submit(deployment: Watched, case: str, rounds: int) -> str:
    """Submit a run; return Flower's run id."""
    transport = STREAMS.get(case, {"round.transport": "messages"})
    return deployment.run({**SETTINGS, **transport, "run.rounds": rounds})


def complete(deployment: Watched, run_id: str) -> None:
    """Wait for a run's end; raises `RuntimeError` if it failed."""
    status, details = deployment.wait(run_id, 120)
    if status != "finished:completed":
        raise RuntimeError(details)


def measure(case: str, rounds: int) -> dict[str, Any]:
    """Run one case; return the seconds of its rounds and, per node and round, the phases."""
    rounds *= FASTER if case in STREAMS else 1
    with deployed(case) as deployment:
        run_id = submit(deployment, case, rounds + WARM_UP)
        metrics = deployment.folder / "runs" / "benchmark" / "metrics.jsonl"
        cpu = []
        for number in (WARM_UP, rounds + WARM_UP):
            _wait_for_round(metrics, number)
            cpu.append(deployment.cpu())
        complete(deployment, run_id)
        seconds = [event["seconds"]["round"] for event in read_events(metrics) if event["event"] == "round"]
        phases = [phase for lines in deployment.lines.values() for phase in _phases(lines)[WARM_UP - 1 :]]
    cpu_a_message = (cpu[1] - cpu[0]) / rounds / NODES
    load = os.getloadavg()[0]  # other work on the machine makes every phase but `poll` longer
    return {"rounds": seconds[WARM_UP:], "phases": phases, "cpu_seconds_per_message": cpu_a_message, "load": load}


def measure_idle(case: str) -> dict[str, float]:
    """Return what a device costs that has trained and has no work: its share of a core, its requests per second."""
    with deployed(case) as deployment:
        complete(deployment, submit(deployment, case, WARM_UP))
        time.sleep(SETTLE)
        cpu, requests = deployment.cpu(), deployment.requests
        time.sleep(IDLE)
        share, rate = deployment.cpu() - cpu, deployment.requests - requests
        memory = deployment.memory()
    return {"share_of_a_core": share / IDLE / NODES, "requests_per_second": rate / IDLE / NODES, **memory,
            "load": os.getloadavg()[0]}  # fmt: skip


def _wait_for_round(metrics: Path, number: int) -> None:
    def there() -> bool:
        return sum(event["event"] == "round" for event in read_events(metrics)) >= number

    wait_until(there, 240, f"round {number} did not end")


def _phases(lines: list[tuple[float, str]]) -> list[dict[str, float]]:
    """Return the phases of every training message but the first."""
    messages: list[dict[str, Any]] = []
    for at, line in lines:
        mark = next((mark for text, mark in MARKS.items() if text in line), None)
        if mark == "received":
            messages.append({})
        if mark and messages:
            messages[-1].setdefault(mark, at)
        if found := ANSWERED.search(line):
            messages[-1] |= {name: float(value) for name, value in found.groupdict().items()}
    return [
        {
            "poll": m["received"] - before["sent"],
            "start": m["started"] - m["received"],
            "pull": m["answered"] - m["started"] - m["whole"],
            "hand over": m["whole"] - m["work"],
            "work": m["work"],
            "reply": m["sending"] - m["answered"],
            "send": m["sent"] - m["sending"],
            "receive": m["complete"] - m["received"],
        }
        for before, m in itertools.pairwise(messages)
    ]


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return medians over all rounds of a case's runs."""
    rounds = [second for run in runs for second in run["rounds"]]
    phases = [phase for run in runs for phase in run["phases"]]
    return {
        "seconds_per_round": statistics.median(rounds),
        "fastest_round": min(rounds),
        "rounds": [round(second, 2) for second in rounds],
        "load": [round(run["load"], 1) for run in runs],
        "cpu_seconds_per_message": statistics.median(run["cpu_seconds_per_message"] for run in runs),
        "phases": {name: statistics.median(phase[name] for phase in phases) for name in PHASES} if phases else {},
    }


def main() -> None:
    """Measure all cases in turn."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--cases", default="flower,worker,stand-in,stream,stream-tls")
    parser.add_argument("--idle", action="store_true", help="measure devices without work instead")
    options = parser.parse_args()
    cases = options.cases.split(",")
    if options.idle:
        print(save("idle", {"nodes": NODES, **{case: measure_idle(case) for case in cases}}))
        return
    runs: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for _ in range(options.repeats):
        for case in cases:
            runs[case].append(measure(case, options.rounds))
            print(case, summary(runs[case]), flush=True)
    save("deployment", {"nodes": NODES, "repeats": options.repeats, **{case: summary(runs[case]) for case in cases}})


if __name__ == "__main__":
    main()

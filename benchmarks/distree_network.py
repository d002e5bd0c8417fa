"""What early exits save where students are processes on hosts of their own, with TLS and real delays.

Every host is a network namespace of this machine. Each image is one request, with every operating point of every set
of students in turn, so that other work on the machine affects all of them alike:

    last         all students at the last exit
    calibrated   the stored policy: the cheapest that loses at most a point on validation images
    cheap        the rung of the ladder that costs about half of all MACs

A case's delay is that of the round trip; each way takes half of it. Students share this machine's cores: more students
than cores wait for each other, and `compute_ms`, the slowest device's own time, includes that. In the online mode one
device becomes 4 times slower in the middle, and later quick again. Needs root; about 3 minutes:

    python -m benchmarks.distree_network runs/students-2 runs/students-4

with the folders that `python -m server students` made on CIFAR-10.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import save
from benchmarks.distree_processes import SLOW
from common.flower.processes import PROJECT
from common.rpc.secrets import CERTIFICATE, read_or_make_token
from server.commands.distree.infer_compare import percentile
from strategies.distree.model.stored import load_students, student_file
from strategies.distree.serving.controller import LatencyTarget
from tests.support.namespaces import Host, namespaces_available, network

DEADLINE = 1.0  # seconds, as `server infer` has it
NEAR = 0.0005  # seconds one way
SLOWED = 2  # the student that is slowed, cut off, killed
HELD, AFTER = 80, 160  # images in the online mode before the change, and after each
WINDOW, QUANTILE = LatencyTarget.window, LatencyTarget.quantile
Requests = dict[str, dict[str, list[dict[str, Any]]]]  # students -> operating point -> what each request took


@dataclass(frozen=True)
class Case:
    """The links of all devices, whether one of them is slow, and how many images it gets."""

    images: int
    delay: float = NEAR  # seconds one way
    rate: float = 0.0  # bits per second; 0: no limit
    slow: bool = False


CASES = {
    "1 ms": Case(60),
    "20 ms": Case(40, delay=0.01),
    "100 ms": Case(34, delay=0.05),
    "1 ms, 10 Mbit/s": Case(40, rate=10e6),
    "1 ms, one device 4 times as slow": Case(40, slow=True),
}


@dataclass
class Stage:
    """All processes on their hosts."""

    hosts: Mapping[str, Host]
    devices: dict[tuple[str, int], subprocess.Popen[str]] = field(default_factory=dict)  # by students and number
    asker: subprocess.Popen[str] | None = None  # the process that sends images to the devices

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the asking process; return its result."""
        assert self.asker and self.asker.stdin and self.asker.stdout
        print(json.dumps([method, arguments]), file=self.asker.stdin, flush=True)
        return json.loads(self.asker.stdout.readline())

    def links(self, case: Case) -> None:
        """Change all devices' links."""
        for name, number in self.devices:
            self.hosts[f"{name}-{number}"].link(delay=case.delay, rate=case.rate)

    def slow(self, number: signal.Signals) -> None:
        """Slow one device of each set (SIGUSR1), or end that (SIGUSR2)."""
        for process in self.slowed.values():
            process.send_signal(number)

    @property
    def slowed(self) -> dict[str, subprocess.Popen[str]]:
        """The process of the device that is slowed, cut off or killed, by students."""
        return {name: process for (name, number), process in self.devices.items() if number == SLOWED}


@contextmanager
def stage(folders: Mapping[str, Path], data: Path) -> Iterator[Stage]:
    """Yield all processes once they are ready."""
    counts = {name: len(load_students(folder).students.spec.numbers) for name, folder in folders.items()}
    names = [f"{name}-{number}" for name, count in counts.items() for number in range(1, count + 1)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        own = Path(stack.enter_context(TemporaryDirectory()))
        hosts = stack.enter_context(network(["server", *names]))
        token = own / "token"
        read_or_make_token(token)
        found = Stage(hosts)

        def start(host: Host, *arguments: str) -> subprocess.Popen[str]:
            process = host.popen(
                [sys.executable, "-m", "benchmarks.distree_processes", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=PROJECT,
            )  # fmt: skip
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        for name, folder in folders.items():
            for number in range(1, counts[name] + 1):
                host = hosts[f"{name}-{number}"]
                found.devices[name, number] = start(
                    host, "device", "--model", str(student_file(folder, number)), "--address", "0.0.0.0:0",
                    "--name", host.address, "--token-file", str(token), "--certificate-dir", str(own / host.address),
                )  # fmt: skip
        models: dict[str, Any] = {
            name: {"folder": str(folder), "token": str(token), "devices": {}} for name, folder in folders.items()
        }
        for (name, number), process in found.devices.items():
            address = process.stdout.readline().split()[-1] if process.stdout else ""
            keys = own / hosts[f"{name}-{number}"].address
            models[name]["devices"][number] = address, str(keys / CERTIFICATE)
        settings = {"models": models, "data": str(data), "deadline": DEADLINE}
        found.asker = start(hosts["server"], "ask", json.dumps(settings))
        found.ask("compare", 5)  # connections, and other costs of the first call
        yield found


def compare(on: Stage, passes: int) -> dict[str, Any]:
    """Return what requests took at every operating point in every case; cases take turns in every pass."""
    taken: dict[str, Requests] = {}
    empty: dict[str, float] = {}
    for _ in range(passes):
        for title, case in CASES.items():
            on.links(case)
            on.slow(signal.SIGUSR1 if case.slow else signal.SIGUSR2)
            empty[title] = min(on.ask("empty", 3), empty.get(title, DEADLINE * 1000))
            _extend(taken.setdefault(title, {}), on.ask("compare", case.images))
    on.slow(signal.SIGUSR2)
    return {title: {"empty_call_ms": empty[title], **_summaries(taken[title])} for title in CASES}


def gone(on: Stage, images: int) -> dict[str, Any]:
    """Return what the loss of a device costs: its link is cut, then its process is killed."""
    on.links(Case(0))
    for name in on.slowed:
        on.hosts[f"{name}-{SLOWED}"].link(loss=1.0)
    cut = {"first": on.ask("compare", 1), "then": on.ask("compare", images)}
    on.links(Case(0))
    linked = time.perf_counter()
    while _incomplete(on.ask("compare", 1)):
        time.sleep(0.01)
    back = time.perf_counter() - linked
    for process in on.slowed.values():
        process.kill()
        process.wait()
    killed = {"first": on.ask("compare", 1), "then": on.ask("compare", images)}
    return {"one device's link cut": {**_lost(cut), "seconds_until_back": back}, "one device killed": _lost(killed)}


def _lost(requests: Mapping[str, Requests]) -> dict[str, Any]:
    """Return what the first requests took, in their order, and a summary of the others."""
    first = {name: {p: taken[0]["ms"] for p, taken in points.items()} for name, points in requests["first"].items()}
    return {"first_ms": first, **_summaries(requests["then"])}


def online(on: Stage, name: str) -> dict[str, Any]:
    """Return the latencies in the online mode: before, while one device is slow, and after that.

    The target is one and a half times what 9 in 10 requests need at the last exit.
    """
    on.links(Case(0))
    before = [taken["ms"] for taken in on.ask("compare", WINDOW)[name]["last"]]
    target = 1.5 * percentile(before, QUANTILE)
    found: dict[str, Any] = {"target_ms": target, "before": _held(on.ask("hold", name, HELD, target), target)}
    for phase, number in (("slowed", signal.SIGUSR1), ("quick again", signal.SIGUSR2)):
        on.slowed[name].send_signal(number)
        found[phase] = _held(on.ask("hold", name, AFTER, target), target)
    return found


def _held(answers: dict[str, Any], target: float) -> dict[str, Any]:
    """Return how the target was held, and after how many requests 9 of the next 10 held it."""
    ms = answers["ms"]
    fine = (at for at in range(len(ms) - 9) if percentile(ms[at : at + 10], QUANTILE) <= target)
    settled = ms[-WINDOW:]
    return {
        "requests": len(ms), "late": sum(one > target for one in ms), "requests_until_within": next(fine, None),
        "mean_ms": sum(ms) / len(ms), "first_ms": ms[:20], "settled_p50_ms": percentile(settled, 0.5),
        "settled_p90_ms": percentile(settled, QUANTILE), "rungs": answers["rungs"],
    }  # fmt: skip


def _incomplete(requests: Requests) -> bool:
    return any(taken["missing"] for points in requests.values() for own in points.values() for taken in own)


def _extend(all_: Requests, more: Requests) -> None:
    for name, points in more.items():
        for point, taken in points.items():
            all_.setdefault(name, {}).setdefault(point, []).extend(taken)


def _summaries(requests: Requests) -> dict[str, Any]:
    return {name: {p: _summary(taken) for p, taken in points.items()} for name, points in requests.items()}


def _summary(taken: list[dict[str, Any]]) -> dict[str, float]:
    def mean(key: str) -> float:
        return float(sum(one[key] for one in taken) / len(taken))

    ms = [one["ms"] for one in taken]
    return {
        "requests": len(taken), "mean_ms": mean("ms"), "p50_ms": percentile(ms, 0.5), "p99_ms": percentile(ms, 0.99),
        "compute_ms": mean("compute_ms"), "bytes_up": mean("up"), "bytes_down": mean("down"),
        "accuracy": mean("right"), "incomplete": sum(bool(one["missing"]) for one in taken) / len(taken),
    }  # fmt: skip


def main() -> None:
    """Measure everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--passes", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--name", default="distree_network")
    options = parser.parse_args()
    if reason := namespaces_available():
        print(f"skipped: {reason}")
        return
    data = Path(os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve() / "cifar10"
    folders = {folder.name: folder.resolve() for folder in options.folders}
    with stage(folders, data) as on:
        result = {"students": on.ask("about"), "deadline_s": DEADLINE, "slowdown": SLOW}
        result["cases"] = compare(on, options.passes)
        result["online"] = {name: online(on, name) for name in folders}
        result["gone"] = gone(on, 30)
    for title, case in result["cases"].items():
        for name in folders:
            points = {p: f"{own['p50_ms']:.1f} ({own['p99_ms']:.1f})" for p, own in case[name].items()}
            print(f"{title}: {name}, p50 (p99) ms: {points}")
    print(json.dumps(result["online"]), save(options.name, result), sep="\n")


if __name__ == "__main__":
    main()

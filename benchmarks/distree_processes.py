"""The processes that `benchmarks.distree_network` starts on its hosts: devices that can be slowed, and the asker.

python -m benchmarks.distree_processes device ARGUMENTS of `python -m client serve-student`
python -m benchmarks.distree_processes ask JSON     reads orders from stdin, a line of JSON each
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.commands import serve_student
from client.commands.computing import add_serve_student
from common.console.samples import Samples
from common.data import DataConfig, load
from common.rpc.channels import connect
from common.rpc.secrets import read_certificate, read_token
from server.commands.distree.infer import classify
from strategies.distree.exits.policies import CALIBRATED, Policies
from strategies.distree.model.stored import StoredStudents, load_students
from strategies.distree.serving.aggregator import Aggregator
from strategies.distree.serving.controller import LatencyController, LatencyTarget
from strategies.distree.serving.service import StudentService

SLOW = 4.0
CHEAP = 0.5  # of all MACs: the rung of the ladder that comes closest is the cheap operating point


def slowed_by_signals(service: StudentService) -> None:
    """Make a student as slow as `--slowdown 4` does, from SIGUSR1 until SIGUSR2."""
    for number, factor in ((signal.SIGUSR1, SLOW), (signal.SIGUSR2, 1.0)):
        signal.signal(number, lambda *_, factor=factor: setattr(service, "slowdown", factor))


def device(arguments: list[str]) -> int:
    """Serve a student."""
    parser = argparse.ArgumentParser()
    add_serve_student(parser.add_subparsers())
    return serve_student.run(parser.parse_args(["serve-student", *arguments]), slowed_by_signals)


class Asker:
    """Sends images to several sets of students, one image a request; `distree_network` writes `settings`."""

    def __init__(self, settings: dict[str, Any], stack: ExitStack) -> None:
        self.stored: dict[str, StoredStudents] = {}
        self.aggregators: dict[str, Aggregator] = {}
        self.channels: list[grpc.Channel] = []
        self.controllers: dict[str, LatencyController] = {}
        for name, model in settings["models"].items():
            self.stored[name] = stored = load_students(Path(model["folder"]))
            token, channels = read_token(Path(model["token"])), {}
            for number, (address, certificate) in model["devices"].items():
                channel = connect(address, token, read_certificate(Path(certificate)))
                channels[int(number)] = stack.enter_context(channel)
            self.channels += channels.values()
            aggregator = Aggregator(stored, channels, settings["deadline"])
            self.aggregators[name] = stack.enter_context(aggregator)
        test = load(DataConfig(name="cifar10", root=settings["data"]), None).test
        self.pixels, self.labels, self.next = test.inputs, test.labels.tolist(), 0

    def points(self, name: str) -> dict[str, Policies]:
        """Return the operating points to compare."""
        stored = self.stored[name]
        return {
            "last": stored.policies["last"],
            CALIBRATED: stored.policies[CALIBRATED],
            "cheap": stored.ladder[self.cheap_rung(name)],
        }

    def cheap_rung(self, name: str) -> int:
        """Return the number of the rung that costs about half."""
        total = [sum(costs) for costs in zip(*self.stored[name].ladder_costs.values(), strict=True)]
        return min(range(len(total)), key=lambda rung: abs(total[rung] - CHEAP * total[0]))

    def about(self) -> dict[str, Any]:
        """Return what the operating points cost."""
        found: dict[str, Any] = {}
        for name, stored in self.stored.items():
            rung = self.cheap_rung(name)
            share = sum(costs[rung] for costs in stored.ladder_costs.values()) / sum(
                costs[0] for costs in stored.ladder_costs.values()
            )
            found[name] = {"cheap_rung": rung, "rungs": len(stored.ladder), "cheap_share_of_macs": share}
        return found

    def compare(self, images: int) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """Return what each request took; students and operating points take turns, each equally often first."""
        found: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for index in range(self.next, self.next + images):
            for name, aggregator in self.aggregators.items():
                points = self.points(name)
                own = found.setdefault(name, {point: [] for point in points})
                for point, policies in _rotated(points, index):
                    answer = aggregator.infer(self.pixels[index : index + 1], policies, [index])
                    taken = {
                        "ms": 1000 * answer.seconds,
                        "compute_ms": 1000 * max(answer.compute.values(), default=0.0),
                        "up": sum(answer.sent.values()),
                        "down": sum(answer.received.values()),
                        "right": int(answer.logits.argmax()) == self.labels[index],
                        "missing": sorted(answer.missing),
                    }
                    own[point].append(taken)
        self.next += images
        return found

    def hold(self, name: str, images: int, target_ms: float) -> dict[str, Any]:
        """Return what each request took in the online mode, and the rungs at the end; its controller is kept."""
        stored = self.stored[name]
        if name not in self.controllers:
            self.controllers[name] = LatencyController(stored.ladder_costs, LatencyTarget(target_ms / 1000))
        controller = self.controllers[name]
        answers = list(classify(stored, self.aggregators[name], self._batches(images), None, controller))
        self.next += images
        return {"ms": [answer.ms for answer in answers], "rungs": controller.rungs}

    def empty(self, calls: int) -> float:
        """Return the milliseconds of the quickest of several calls without computation."""
        times = []
        for channel in self.channels:
            check = health_pb2_grpc.HealthStub(channel).Check
            for _ in range(calls):
                started = time.perf_counter()
                check(health_pb2.HealthCheckRequest())
                times.append(1000 * (time.perf_counter() - started))
        return min(times)

    def _batches(self, images: int) -> Iterator[Samples]:
        for index in range(self.next, self.next + images):
            yield Samples([str(index)], [None], self.pixels[index : index + 1].numpy())


def _rotated(points: dict[str, Policies], by: int) -> list[tuple[str, Policies]]:
    items = list(points.items())
    return items[by % len(items) :] + items[: by % len(items)]


def ask(settings: dict[str, Any]) -> int:
    """Read orders from stdin, one `[method, arguments]` a line, and answer each with a line."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        asker = Asker(settings, stack)
        for line in sys.stdin:
            method, arguments = json.loads(line)
            print(json.dumps(getattr(asker, method)(*arguments)), flush=True)
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run as a device or as the asker."""
    role, *rest = arguments
    return device(rest) if role == "device" else ask(json.loads(rest[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

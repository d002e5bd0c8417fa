"""Students on separate hosts with TLS: all answer, one is slow, one is killed."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from common.data import DataConfig, load, normalizer
from common.flower.processes import PROJECT
from common.networks import NetworkSpec
from common.rpc.secrets import CERTIFICATE, read_or_make_token
from common.seeding import seed_global
from strategies.distree.model.stored import StoredStudents, load_student, load_students, save_students, student_file
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.settings import DistrEESettings
from strategies.distree.training.finish import finish_students
from tests.support.namespaces import Host, namespaces_available, network
from tests.support.served import read_line

pytestmark = pytest.mark.skipif(bool(namespaces_available()), reason=namespaces_available())
BATCH, IMAGES, SLOW = 128, 256, 100
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass
class Devices:
    """Two students on two hosts, and a server on a third host."""

    folder: Path
    hosts: Mapping[str, Host]
    stack: ExitStack
    arguments: dict[int, list[str]] = field(default_factory=dict)
    processes: dict[int, subprocess.Popen[str]] = field(default_factory=dict)

    def serve(self, number: int, *options: str) -> None:
        """Start a student on its host, and end the one that runs there."""
        if number in self.processes:
            self.kill(number)
        host, keys = self.hosts[f"device-{number}"], self.folder / f"keys-{number}"
        process = host.popen(
            [sys.executable, "-m", "client", "serve-student", "--model", str(student_file(self.folder, number)),
             "--address", "0.0.0.0:0", "--name", host.address, "--token-file", str(self.folder / "token"), "--tls",
             "--certificate-dir", str(keys), "--batch", str(BATCH), *options],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=PROJECT,
        )  # fmt: skip
        self.processes[number] = self.stack.enter_context(process)
        self.stack.callback(process.kill)
        address = read_line(process).split()[-1]
        self.arguments[number] = ["--student", f"{number}={address}", "--certificate", f"{number}={keys / CERTIFICATE}"]

    def kill(self, number: int) -> None:
        """Kill (SIGKILL) a student."""
        self.processes[number].kill()
        self.processes[number].wait()

    def infer(self, *options: str) -> tuple[list[dict[str, Any]], str]:
        """Run `infer` on the server's host; returns the answers file's images, and the output."""
        code, output = self.ask(*options)
        assert code == 0, output
        images: list[dict[str, Any]] = json.loads(self.answers.read_text())["images"]
        return images, output

    @property
    def answers(self) -> Path:
        """The answers file of `ask`."""
        return self.folder / "answers.json"

    def ask(self, *options: str) -> tuple[int, str]:
        """Run `infer` on the server's host; returns the exit code and the output."""
        arguments = [part for own in self.arguments.values() for part in own]
        process = self.hosts["server"].popen(
            [sys.executable, "-m", "server", "infer", "--model", str(self.folder), "--dataset", "digits",
             "--limit", str(IMAGES), "--batch", str(BATCH), "--token-file", str(self.folder / "token"),
             "--json", str(self.answers), *arguments, *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT, cwd=PROJECT,
        )  # fmt: skip
        output, _ = process.communicate(timeout=120)
        return process.returncode, output


@pytest.fixture(scope="module")
def devices(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Devices]:
    """Untrained students with random exits, whose features differ."""
    folder = tmp_path_factory.mktemp("students")
    source = load(DataConfig(), None)
    backbone = NetworkSpec("wrn16", 10, source.input_shape, width=1)
    students = build_students(students_spec(backbone, backbone, [range(20), range(20, 45)]), seed=1).eval()
    seed_global(torch.device("cpu"), 1)
    for _, student in students.numbered():
        for head in student.exits.values():
            torch.nn.init.normal_(head.linear.weight)
    for heads in students.own.parameters():
        torch.nn.init.normal_(heads)
    images, settings = source.train.subset(torch.arange(200)), DistrEESettings(max_accuracy_loss=0.05)
    stored, _ = finish_students(students, images, normalizer(DataConfig(), 1), settings, torch.device("cpu"), "test")
    save_students(folder, stored)
    read_or_make_token(folder / "token")
    with ExitStack() as stack:
        hosts = stack.enter_context(network(["server", "device-1", "device-2"]))
        devices = Devices(folder, hosts, stack)
        for number in (1, 2):
            devices.serve(number)
            hosts[f"device-{number}"].link(delay=0.005)
        yield devices


def rows_of(images: list[dict[str, Any]]) -> list[int]:
    """Return the images' numbers in the test split."""
    return [int(image["file"]) for image in images]


@torch.no_grad()
def in_one_process(folder: Path, rows: list[int], policy: str) -> tuple[list[str], dict[int, list[int]]]:
    """Return the labels of these test images, and each student's exits from 1."""
    stored = load_students(folder)
    pixels = load(DataConfig(), None).test.inputs[rows]
    features = {k: torch.stack(f) for k, f in stored.students.features(stored.normalizer(pixels)).items()}
    asked = {k: load_student(student_file(folder, k)).classify for k in features}
    exits = {k: stored.policies[policy][k].exits(f, asked[k], range(IMAGES)) for k, f in features.items()}
    samples = torch.arange(IMAGES)
    logits = stored.students.classifier.combine({k: f[exits[k], samples] for k, f in features.items()}, exits)
    return [stored.classes[label] for label in logits.argmax(1)], {k: (e + 1).tolist() for k, e in exits.items()}


@torch.no_grad()
def alone(stored: StoredStudents, rows: list[int], number: int) -> list[str]:
    """Return the labels of these test images by one student and the others' mean features."""
    pixels = load(DataConfig(), None).test.inputs[rows]
    own = stored.students.student(number)(stored.normalizer(pixels))[-1]
    features = {k: own if k == number else mean.expand(IMAGES, -1) for k, mean in stored.means.items()}
    return [stored.classes[label] for label in stored.students.classifier(features, 6).argmax(1)]


@torch.no_grad()
def cpu_seconds(stored: StoredStudents, number: int) -> float:
    """Return the least CPU time that a student needs for a batch."""
    pixels, times = load(DataConfig(), None).test.inputs[:BATCH], []
    for _ in range(20):
        started = time.thread_time()
        stored.students.student(number)(stored.normalizer(pixels))
        times.append(time.thread_time() - started)
    return min(times)


@pytest.mark.parametrize("policy", ["last", "calibrated", "random"])
def test_hosts_give_the_answers_of_one_process(devices: Devices, policy: str) -> None:
    images, _ = devices.infer("--policy", policy, "--deadline", "20")
    labels, exits = in_one_process(devices.folder, rows_of(images), policy)
    assert [image["label"] for image in images] == labels
    for number, expected in exits.items():
        assert [image["exits"][str(number)] for image in images] == expected
    assert all(image["missing"] == {} and image["ms"] >= 10 for image in images)


def test_hosts_with_the_wrong_certificate_get_no_images(devices: Devices) -> None:
    before = dict(devices.arguments)
    devices.arguments = {k: [*before[k][:3], f"{k}={devices.folder / f'keys-{3 - k}' / CERTIFICATE}"] for k in (1, 2)}
    code, output = devices.ask("--policy", "last", "--deadline", "1")
    devices.arguments = before
    assert code == 2
    assert output.startswith("error: no device answered any image")
    assert "student 1: down: it cannot be reached" in output
    assert "certificate" in output.lower()


def test_slow_host_is_left_out_after_a_short_deadline(devices: Devices) -> None:
    devices.serve(2, "--slowdown", str(SLOW))
    images, _ = devices.infer("--policy", "last", "--deadline", "20")
    assert all(image["exits"] == {"1": 7, "2": 7} for image in images)
    deadline = SLOW / 2 * cpu_seconds(load_students(devices.folder), 2)
    images, output = devices.infer("--policy", "last", "--deadline", str(deadline))
    assert all(image["exits"]["2"] is None for image in images)
    assert all("late" in image["missing"]["2"] or "down" in image["missing"]["2"] for image in images)
    assert all(image["ms"] < 1000 * (deadline + 5) for image in images)
    assert f"student 2 is missing in {IMAGES} answers, its mean feature stands in" in output


def test_killed_host_is_left_out_before_the_deadline(devices: Devices) -> None:
    devices.kill(2)
    images, output = devices.infer("--policy", "last", "--deadline", "2")
    assert all(image["exits"] == {"1": 7, "2": None} and image["missing"]["2"] for image in images)
    assert all(image["ms"] < 2500 for image in images)
    assert f"student 2 is missing in {IMAGES} answers, its mean feature stands in" in output
    stored = load_students(devices.folder)
    assert [image["label"] for image in images] == alone(stored, rows_of(images), 1)

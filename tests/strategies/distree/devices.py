"""Two tiny students with random weights, and devices that serve them on real sockets."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

import grpc
import torch
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from torch import Tensor

from common.data.images import Normalizer
from common.networks import Inference, NetworkSpec
from common.rpc.channels import connect, new_token, serve
from common.rpc.methods import INFER, STUDENTS
from common.seeding import generator
from strategies.distree.exits.policies import ExitPolicy, Gate
from strategies.distree.model.stored import (
    StoredStudent,
    StoredStudents,
    load_student,
    load_students,
    save_students,
    student_file,
)
from strategies.distree.model.students import build_students, students_spec
from strategies.distree.serving.aggregator import Aggregator
from strategies.distree.serving.computed import TorchStudent
from strategies.distree.serving.service import StudentService, own_policy

TOKEN = new_token()
BACKBONE = NetworkSpec("wrn16", 5, (3, 8, 8), width=1)
SPEC = students_spec(BACKBONE, BACKBONE, ((0, 3, 5, 8), (1, 7, 9)), pooling="squares")
PIXELS = torch.randint(0, 256, (6, 3, 8, 8), generator=generator("pixels", 1), dtype=torch.uint8)
EXITS = 7
# A gate of random weights, by which the students' samples leave at several exits
GATE = Gate(
    (0.0,) * (EXITS - 1), tuple(map(tuple, torch.randn(EXITS, 16, generator=generator("gate", 1)).div(4).tolist()))
)
Service = Callable[[grpc.Server], None]


def store(folder: Path) -> Path:
    """Store the students of run "tiny" in a folder, as training does."""
    students = build_students(SPEC, seed=2)
    normalize = Normalizer((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for _ in range(20):  # running statistics, so that features differ from exit to exit
        students(normalize(PIXELS))
    for at, heads in enumerate(students.own.parameters()):
        heads.data = torch.randn(heads.shape, generator=generator("own heads", at))
    means = {number: features[-1].detach().mean(0) for number, features in students.features(normalize(PIXELS)).items()}
    save_students(folder, StoredStudents(students.eval(), tuple("abcde"), normalize, means, run="tiny"))
    return folder


class Tiny:
    """The students in a folder of `store`."""

    def __init__(self, folder: Path) -> None:
        self.folder = store(folder)
        self.whole: StoredStudents = load_students(folder)

    def student(self, number: int) -> StoredStudent:
        return load_student(student_file(self.folder, number))

    def here(self, number: int, policy: ExitPolicy, ids: tuple[int, ...] = (), pixels: Tensor = PIXELS) -> Inference:
        """Return a student's answer, computed in this process."""
        one = self.student(number)
        return one.network.infer(one.normalizer(pixels), policy.start(one.classify, ids))

    @torch.no_grad()
    def combined(self, inferences: dict[int, Inference]) -> Tensor:
        features = {number: inference.logits for number, inference in inferences.items()}
        exits = {number: inference.exits for number, inference in inferences.items()}
        return self.whole.students.classifier.combine(features, exits)

    def filled(self, number: int, exits: Tensor, policy: ExitPolicy, ids: tuple[int, ...]) -> Inference:
        """Return a student's answer, with its mean feature where `exits` is -1."""
        inference, came = self.here(number, policy, ids), exits >= 0
        return Inference(
            torch.where(came[:, None], inference.logits, self.whole.means[number]), exits.where(came, EXITS - 1)
        )


@contextmanager
def serving(service: Service, address: str = "127.0.0.1:0", token: str = TOKEN) -> Iterator[str]:
    """Serve as `python -m client serve-student` does, and yield the address."""

    def register(server: grpc.Server) -> None:
        service(server)
        probe = health.HealthServicer()
        probe.set(STUDENTS, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(probe, server)

    with serve(register, address, token) as server:
        yield server.address


def service(stored: StoredStudent, **options) -> Service:
    student = TorchStudent(stored)
    return StudentService(student, own_policy(student), **options).register


def replying(*replies: bytes) -> Service:
    """Return a device that answers every request with these messages."""
    handlers = {INFER.rpartition("/")[2]: grpc.unary_stream_rpc_method_handler(lambda *_: iter(replies))}
    return lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(STUDENTS, handlers),))


@contextmanager
def asking(
    tiny: Tiny, addresses: dict[int, str], deadline: float = 20.0, absent: Collection[int] = (), **options
) -> Iterator[Aggregator]:
    """Yield an aggregator connected to the devices, once all but the absent ones are ready."""
    with ExitStack() as stack:
        channels = {number: stack.enter_context(connect(address, TOKEN)) for number, address in addresses.items()}
        aggregator = stack.enter_context(Aggregator(tiny.whole, channels, deadline, **options))
        for number in set(addresses) - set(absent):
            wait_ready(aggregator, number)
        yield aggregator


def wait_ready(aggregator: Aggregator, number: int) -> None:
    """Wait until a device is ready, which on a busy machine takes longer than a batch waits."""
    assert aggregator._remotes[number]._ready.wait(60), aggregator._remotes[number]._problem


def slow_at(stored: StoredStudent, unit: int, seconds: float) -> StoredStudent:
    """Let a student's unit (from 0) take so many seconds longer."""
    stored.network.units[str(unit)].register_forward_hook(lambda *_: time.sleep(seconds))
    return stored


def held_at(stored: StoredStudent, unit: int) -> Event:
    """Let a student's unit (from 0) wait for the returned event."""
    released = Event()
    stored.network.units[str(unit)].register_forward_hook(lambda *_: released.wait(60) and None)
    return released

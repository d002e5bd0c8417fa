"""Devices as real processes: they answer as one process does, are killed, stopped, and return."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from client.__main__ import main
from common.flower.processes import PROJECT
from common.networks import Inference
from common.rpc.channels import connect
from common.rpc.methods import STUDENTS
from common.rpc.secrets import read_token
from strategies.distree.exits.policies import LastExit
from strategies.distree.model.stored import student_file
from strategies.distree.serving.aggregator import Aggregator, Answer
from tests.strategies.distree.devices import EXITS, PIXELS, Tiny
from tests.support.served import read_line

LAST = {number: LastExit(EXITS) for number in (1, 2)}


class Process:
    """`python -m client serve-student` in a process of its own."""

    def __init__(self, tiny: Tiny, number: int, *arguments: str) -> None:
        file = str(student_file(tiny.folder, number))
        command = [sys.executable, "-m", "client", "serve-student", "--model", file, "--device", "cpu", *arguments]
        self.process = subprocess.Popen(
            command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True
        )

    def listens(self) -> "Process":
        """Wait until it says where."""
        self.line, self.command = read_line(self.process), shlex.split(read_line(self.process))
        self.address = self.option("--student").partition("=")[2]
        self.token = Path(self.option("--token-file"))
        return self

    def option(self, name: str) -> str:
        return self.command[self.command.index(name) + 1]

    def channel(self, token: str = "") -> grpc.Channel:
        certificate = None
        if "--certificate" in self.command:
            certificate = Path(self.option("--certificate").partition("=")[2]).read_bytes()
        return connect(self.address, token or read_token(self.token), certificate)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


class Devices:
    """Two processes: the first plain, the second encrypted and slowed down. Importing torch takes seconds."""

    def __init__(self, tiny: Tiny) -> None:
        self._tiny = tiny
        keys = tiny.folder / "keys"
        self._second = ("--tls", "--certificate-dir", str(keys), "--slowdown", "20", "--threads", "2", "--batch", "6")
        self.processes = {1: Process(tiny, 1), 2: Process(tiny, 2, *self._second)}
        for process in self.processes.values():
            process.listens()

    def restart(self) -> None:
        """Start the second again at its address."""
        address = self.processes[2].address
        self.processes[2] = Process(self._tiny, 2, *self._second, "--address", address).listens()

    @contextmanager
    def asked(self, deadline: float) -> Iterator[Aggregator]:
        with ExitStack() as stack:
            channels = {k: stack.enter_context(process.channel()) for k, process in self.processes.items()}
            yield stack.enter_context(Aggregator(self._tiny.whole, channels, deadline))


@pytest.fixture(scope="module")
def devices(tiny: Tiny) -> Iterator[Devices]:
    started = Devices(tiny)
    yield started
    for process in started.processes.values():
        process.process.kill()
        process.process.wait()


def until(aggregator: Aggregator, there: bool) -> Answer:
    """Ask until student 2 answers, or until it does not."""
    end = time.monotonic() + 60
    while True:
        answer = aggregator.infer(PIXELS, LAST)
        if (2 not in answer.missing) == there or time.monotonic() > end:
            return answer
        time.sleep(0.05)


def test_next_command_is_printed(tiny: Tiny, devices: Devices) -> None:
    plain, secured = devices.processes[1], devices.processes[2]
    assert plain.line == f"student 1 answers at {plain.address}\n"
    assert plain.command[:4] == ["python", "-m", "server", "infer"]
    assert plain.option("--model") == str(tiny.folder)
    assert "--certificate" not in plain.command
    assert secured.option("--certificate") == f"2={tiny.folder / 'keys' / 'certificate.pem'}"
    assert plain.token == secured.token == tiny.folder / "students.token"
    assert plain.token.stat().st_mode & 0o777 == 0o600


def test_health_and_reflection_need_the_token(devices: Devices) -> None:
    for process in devices.processes.values():
        with process.channel() as channel:
            health = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(service=STUDENTS), timeout=20).status == 1
            known = ProtoReflectionDescriptorDatabase(channel)
            assert {STUDENTS, "grpc.health.v1.Health"} <= set(known.get_services())
            assert "InferReply" in [message.name for message in known.FindFileContainingSymbol(STUDENTS).message_type]
        with process.channel("another") as channel:
            with pytest.raises(grpc.RpcError) as refusal:
                health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=STUDENTS), timeout=20)
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as refusal:
                ProtoReflectionDescriptorDatabase(channel).get_services()
            assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_devices_answer_as_one_process_the_slowed_one_later(tiny: Tiny, devices: Devices) -> None:
    with devices.asked(deadline=20.0) as aggregator:
        answer = until(aggregator, there=True)
        answers = [answer, *(aggregator.infer(PIXELS, LAST) for _ in range(4))]
    assert not any(answer.missing for answer in answers)
    expected = tiny.combined({number: tiny.here(number, policy) for number, policy in LAST.items()})
    assert all(torch.equal(answer.logits, expected) for answer in answers)
    assert min(answer.compute[2] for answer in answers) > 4 * min(answer.compute[1] for answer in answers)


def test_a_hanging_device_costs_few_deadlines_and_returns(devices: Devices) -> None:
    with devices.asked(deadline=3.0) as aggregator:
        assert not until(aggregator, there=True).missing
        devices.processes[2].process.send_signal(signal.SIGSTOP)
        try:
            answers = [aggregator.infer(PIXELS, LAST) for _ in range(10)]
        finally:
            devices.processes[2].process.send_signal(signal.SIGCONT)
        assert answers[0].missing[2] == "late: 0 of 6 samples came within 3 s"
        assert answers[-1].missing[2].startswith("down: ")
        assert sum(answer.seconds for answer in answers) < 24  # ten deadlines are 30
        assert not until(aggregator, there=True).missing


def test_a_killed_device_is_filled_in_and_returns(tiny: Tiny, devices: Devices) -> None:
    here = {number: tiny.here(number, policy) for number, policy in LAST.items()}
    mean = Inference(tiny.whole.means[2].expand(len(PIXELS), -1), torch.full((len(PIXELS),), EXITS - 1))
    with devices.asked(deadline=5.0) as aggregator:
        assert not until(aggregator, there=True).missing
        assert devices.processes[2].stop(signal.SIGKILL) == -signal.SIGKILL
        for _ in range(3):
            answer = aggregator.infer(PIXELS, LAST)
            assert set(answer.missing) == {2}
            assert "it cannot be reached" in answer.missing[2]
            assert torch.equal(answer.logits, tiny.combined({1: here[1], 2: mean}))
            assert answer.seconds < 4  # before the deadline
        devices.restart()
        answer = until(aggregator, there=True)
    assert not answer.missing
    assert torch.equal(answer.logits, tiny.combined(here))
    for process, number in zip(devices.processes.values(), (signal.SIGINT, signal.SIGTERM), strict=True):
        assert process.stop(number) == 0


def test_user_errors_end_with_2_and_one_line(tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(student_file(tiny.folder, 1))
    (tmp_path / "public").write_text("token")
    (tmp_path / "public").chmod(0o644)
    for arguments, message in (
        (["--model", str(tmp_path / "absent")], "absent"),
        (["--model", file, "--batch", "0"], "--batch 0: give 1 or more"),
        (["--model", file, "--threads", "0"], "--threads 0: give 1 or more"),
        (["--model", file, "--slowdown", "0.5"], "--slowdown 0.5: give 1 or more"),
        (["--model", file, "--slowdown", "nan"], "--slowdown nan: give 1 or more"),
        (["--model", file, "--policy", "quick"], "no policy 'quick'"),
        (["--model", file, "--token-file", str(tmp_path / "public")], "chmod 600"),
        (["--model", file, "--address", "0.0.0.0:0"], "give the --name by which others reach it"),
        (["--model", file, "--address", "127.0.0.1"], "is not an address"),
    ):
        assert main(["serve-student", "--device", "cpu", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.distree_processes import SLOW, device, slowed_by_signals
from client.commands import serve_student
from strategies.distree.exits.policies import LastExit
from strategies.distree.model.stored import student_file
from strategies.distree.serving.computed import TorchStudent
from strategies.distree.serving.service import StudentService
from tests.strategies.distree.devices import EXITS, Tiny

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_slow_student_and_restore_it(tmp_path: Path, handlers: None) -> None:
    service = StudentService(TorchStudent(Tiny(tmp_path).student(1)), LastExit(EXITS))
    slowed_by_signals(service)
    for number, factor in zip(SIGNALS, (SLOW, 1.0), strict=True):
        os.kill(os.getpid(), number)
        assert service.slowdown == factor


def test_device_serves_student_of_its_arguments(
    tmp_path: Path, handlers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[str] = []
    monkeypatch.setattr(serve_student.standalone, "serve_until_stopped", lambda *given: served.append(given[1]))
    Tiny(tmp_path)
    assert device(["--model", str(student_file(tmp_path, 1)), "--device", "cpu"]) == 0
    assert served == [serve_student.STUDENTS]
    assert all(callable(signal.getsignal(number)) for number in SIGNALS)

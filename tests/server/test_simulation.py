"""A simulation's process: what it answers, and that it ends, whatever else goes on in it."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import flwr.simulation
import pytest

from common.errors import UserError
from common.flower import ray_pool
from common.flower.processes import PROJECT
from server import simulation
from server.simulation import Request, reason

REQUEST = Request(settings={}, workers=1, resources={"num_cpus": 1, "num_gpus": 0.0}, ray={})


@contextmanager
def process(body: str) -> Iterator["subprocess.Popen[str]"]:
    """Start the process with another `simulate`, and send it a request."""
    code = f"import sys, threading, time, types\nfrom server import simulation\n{body}\nsimulation.main()"
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, env=env, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as started:  # fmt: skip
        assert started.stdin
        try:
            started.stdin.write(json.dumps(REQUEST) + "\n")
            started.stdin.flush()
            yield started
        finally:
            started.kill()


def answer(body: str) -> tuple[str, str, int]:
    """Return the answer's failure, what is printed, and the exit code."""
    with process(body) as started:
        assert started.stdout
        assert started.stderr
        output, errors = started.stdout.read(), started.stderr.read()  # the input stays open
        return json.loads(output)["failure"], errors, started.wait(10)


def test_answer_is_apart_from_what_is_printed():
    body = "simulation.simulate = lambda request: print(request['workers'], 'worker')"
    assert answer(body) == ("", "1 worker\n", 0)


def test_exit_is_a_failure_and_no_thread_is_waited_for():
    body = """
def simulate(request):
    threading.Thread(target=time.sleep, args=(60,)).start()
    sys.exit(15)
simulation.simulate = simulate
"""
    began = time.monotonic()
    assert answer(body) == ("SystemExit: 15", "", 0)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("ray", ["", "sys.modules['ray'] = types.ModuleType('ray')"], ids=["absent", "half imported"])
def test_process_ends_with_its_input(ray):
    body = f"{ray}\nsimulation.simulate = lambda request: (print('began', flush=True), time.sleep(60))"
    with process(body) as started:
        assert started.stderr
        assert started.stdin
        assert started.stderr.readline() == "began\n"
        started.stdin.close()
        assert started.wait(30) == 130


def test_reason_is_the_error_that_flower_wraps():
    with pytest.raises(RuntimeError) as raised:
        try:
            try:
                raise ValueError("no worker is left")
            except ValueError as error:
                raise RuntimeError("Simulation Runtime crashed.") from error
        except RuntimeError as error:
            raise RuntimeError("An error was encountered. Ending simulation.") from error
    assert reason(raised.value) == "ValueError: no worker is left"


def test_reason_keeps_an_error_that_has_a_cause():
    error = UserError("labels.csv cannot be read: copy it again")
    error.__cause__ = FileNotFoundError(2, "No such file")
    assert reason(error) == "UserError: labels.csv cannot be read: copy it again"


def test_app_that_exits_is_a_failure(monkeypatch):
    monkeypatch.setattr(flwr.simulation, "run_simulation", lambda *_, **__: None)
    monkeypatch.setattr(ray_pool, "look_often", lambda: None)
    with pytest.raises(RuntimeError, match="ended before its last round"):
        simulation.simulate(REQUEST)

import importlib
import secrets
import threading
import time
from types import ModuleType

import pytest

from client.warm import pace as module
from client.warm.flower_shim import PACED
from client.warm.pace import COMMANDS, DUTY, FIRST_LOOK, FIRST_POLL, LOOK, POLL, ExecPace, NodePace, sleeps_as_expected


class Clock:
    """Stands for the clock of `pace`."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(round(seconds, 6))
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def after(clock: Clock, pace: NodePace, seconds: float, pause: float) -> float:
    """The pause that follows so many seconds of work."""
    clock.now += seconds
    pace.sleep(pause)
    return clock.pauses[-1]


def test_polls_become_rare_without_messages(clock):
    pace = NodePace("nothing-listens")
    pace.sleep(LOOK)  # a message has come
    pauses = [after(clock, pace, 0, POLL) for _ in range(60)]
    assert pauses[0] == FIRST_POLL
    assert pauses == sorted(pauses)
    assert pauses[-1] == POLL


def test_slow_superlink_is_polled_less(clock):
    pace = NodePace("nothing-listens")
    pace.sleep(LOOK)
    assert after(clock, pace, 0.02, POLL) == pytest.approx(DUTY * 0.02)


def test_reply_is_looked_for_often_at_first(clock):
    pace = NodePace("nothing-listens")
    pauses = [after(clock, pace, 0, LOOK) for _ in range(80)]
    assert pauses[0] == FIRST_LOOK
    assert pauses == sorted(pauses)
    assert pauses[-1] == LOOK
    pace.sleep(POLL)
    assert after(clock, pace, 0, LOOK) == FIRST_LOOK


def test_other_pauses_stay(clock):
    pace = NodePace("nothing-listens")
    assert after(clock, pace, 0, 7.0) == 7.0


def test_bell_ends_the_superexecs_pause(monkeypatch):
    monkeypatch.setattr(module, "AWAKE", 0.0)
    monkeypatch.setattr(module, "IDLE", 30.0)
    bell = f"test-{secrets.token_hex(4)}"
    executor = ExecPace(bell)
    threading.Timer(0.1, NodePace(bell).sleep, [LOOK]).start()
    begun = time.monotonic()
    executor.sleep(0.1)
    assert time.monotonic() - begun < 10


def test_superexec_polls_at_flowers_pace_after_a_message(monkeypatch):
    monkeypatch.setattr(module, "IDLE", 30.0)
    executor = ExecPace(f"test-{secrets.token_hex(4)}")
    begun = time.monotonic()
    executor.sleep(0.1)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize("name", PACED)
def test_flowers_modules_sleep_as_expected(name):
    loop, sleeps, _, package, function = COMMANDS[name]
    assert sleeps_as_expected(importlib.import_module(loop), sleeps)
    assert callable(getattr(importlib.import_module(package), function))


@pytest.mark.parametrize("change", ["time.sleep(4)", "time.time()"])
def test_module_of_another_pace_is_left_alone(change, monkeypatch):
    monkeypatch.setattr(module.inspect, "getsource", lambda _: f"time.sleep(3)\ntime.sleep(0.5)\n{change}")
    assert not sleeps_as_expected(ModuleType("x"), {"3", "0.5"})

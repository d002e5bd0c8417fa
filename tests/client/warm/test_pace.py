import importlib
import inspect
import secrets
import threading
import time
from types import ModuleType

import pytest

from client.warm import pace as module
from client.warm.flower_shim import PACED
from client.warm.pace import (
    COMMANDS,
    CONFIGURE,
    DUTY,
    FIRST_LOOK,
    FIRST_POLL,
    IDLE,
    LOOK,
    POLL,
    SLOWEST,
    SPREAD,
    ExecPace,
    NodePace,
    sleeps_as_expected,
)


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
    monkeypatch.setattr(module.random, "uniform", lambda low, high: (low + high) / 2)
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
    pace.sleep(POLL)
    assert after(clock, pace, 0.02, POLL) == pytest.approx(DUTY * 0.02)


def test_first_poll_after_the_start_and_after_a_reply_is_prompt(clock):
    """What the node did before is not the time that the SuperLink takes to answer."""
    pace = NodePace("nothing-listens")
    assert after(clock, pace, 0.4, POLL) == FIRST_POLL  # Flower's start and the node's registration
    assert after(clock, pace, 0.01, POLL) == pytest.approx(DUTY * 0.01)
    after(clock, pace, 0.01, LOOK)
    assert after(clock, pace, 0.3, POLL) == pytest.approx(DUTY * 0.01)  # the reply was sent in between
    assert after(clock, pace, 0.02, POLL) == pytest.approx(DUTY * 0.02)


@pytest.mark.parametrize(
    ("nodes", "pause"), [(0, 0.2), (2, 0.2), (5, 0.2), (20, 0.8), (50, 2.0), (100, POLL), (120, 3.6), (1000, 4.5)]
)
def test_pause_grows_with_the_number_of_nodes(nodes, pause, clock):
    pace = NodePace("nothing-listens")
    pace.nodes = nodes
    pace.sleep(POLL)
    assert after(clock, pace, 0.01, POLL) == pause


def test_crowd_without_messages_polls_slowly(clock):
    pace = NodePace("nothing-listens")
    pace.nodes = 300
    assert after(clock, pace, 1000, POLL) == SLOWEST * POLL


def test_pauses_differ_by_chance(clock, monkeypatch):
    monkeypatch.setattr(module.random, "uniform", lambda low, high: high)
    pace = NodePace("nothing-listens")
    assert after(clock, pace, 1000, POLL) == (1 + SPREAD) * POLL
    assert after(clock, pace, 0, LOOK) == FIRST_LOOK


def test_node_learns_the_number_of_clients_from_its_runs():
    configurations = iter([{"clients.count": 100}, {}, {"clients.count": "many"}])
    flower = ModuleType("flower")
    flower.get_fused_config_from_fab = lambda content, run: next(configurations)
    pace = NodePace("nothing-listens")
    pace.count_nodes(flower)
    assert pace.nodes == 0
    assert flower.get_fused_config_from_fab(b"", run=None) == {"clients.count": 100}
    assert pace.nodes == 100
    for _ in range(2):
        flower.get_fused_config_from_fab(b"", run=None)
        assert pace.nodes == 0


def test_another_flower_leaves_the_number_unknown():
    flower = ModuleType("flower")
    NodePace("nothing-listens").count_nodes(flower)
    assert not hasattr(flower, CONFIGURE)


def test_flowers_loop_asks_for_a_runs_configuration():
    assert f"= {CONFIGURE}(" in inspect.getsource(importlib.import_module(COMMANDS["flower-supernode"][0]))


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


def test_bell_ends_the_superexecs_pause():
    bell = f"test-{secrets.token_hex(4)}"
    executor = ExecPace(bell)
    threading.Timer(0.1, NodePace(bell).sleep, [LOOK]).start()
    begun = time.monotonic()
    executor.sleep(30.0)
    assert time.monotonic() - begun < 10


def test_superexecs_polls_become_rare_without_the_bell(clock, monkeypatch):
    pauses: list[float] = []

    def wait(readers: list[object], _writers: object, _errors: object, pause: float) -> tuple[list[object], ...]:
        pauses.append(pause)
        clock.now += pause
        return [], [], []

    monkeypatch.setattr(module, "select", wait)
    executor = ExecPace(f"test-{secrets.token_hex(4)}")
    for _ in range(100):
        executor.sleep(0.1)
    assert pauses[:10] == [0.1] * 10
    assert pauses == sorted(pauses)
    assert pauses[-1] == IDLE


@pytest.mark.parametrize("name", PACED)
def test_flowers_modules_sleep_as_expected(name):
    loop, sleeps, _, package, function = COMMANDS[name]
    assert sleeps_as_expected(importlib.import_module(loop), sleeps)
    assert callable(getattr(importlib.import_module(package), function))


@pytest.mark.parametrize("change", ["time.sleep(4)", "time.time()"])
def test_module_of_another_pace_is_left_alone(change, monkeypatch):
    monkeypatch.setattr(module.inspect, "getsource", lambda _: f"time.sleep(3)\ntime.sleep(0.5)\n{change}")
    assert not sleeps_as_expected(ModuleType("x"), {"3", "0.5"})


@pytest.mark.parametrize(("pause", "paced"), [("3", True), ("4", False)])
def test_command_runs_and_a_loop_of_another_pace_keeps_its_clock(pause, paced, tmp_path, monkeypatch):
    source = f"import time\n\n\ndef loop():\n    time.sleep({pause})\n    time.sleep(0.5)\n    return 7\n"
    name = f"flower_loop_{pause}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(module.sys, "argv", ["pace", "loop", "--option"])
    monkeypatch.setitem(COMMANDS, "loop", (name, {"3", "0.5"}, NodePace, name, "loop"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv(module.BELL, "nothing-listens")
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert (ended.value.code, module.sys.argv[1:]) == (7, ["--option"])
    assert (importlib.import_module(name).time is time) != paced

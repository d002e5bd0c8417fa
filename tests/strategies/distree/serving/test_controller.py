from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest

from common.errors import UserError
from strategies.distree.serving.controller import LatencyController, LatencyTarget, Seconds

COSTS = (12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0)  # of 12 rungs
TARGET = LatencyTarget(seconds=0.1)  # 5 late requests of 40 are too many; a rung fits up to 0.09 seconds


@dataclass
class Device:
    """A device that takes a millisecond per cost and unit of load, plus the time of its link."""

    link: float = 0.002
    load: float = 1.0
    overhead: float = 0.0  # seconds of computing at any rung

    def answer(self, rung: int) -> Seconds:
        compute = self.overhead + COSTS[rung] * 0.001 * self.load
        return Seconds(self.link + compute, compute)


def serve(
    controller: LatencyController,
    devices: Mapping[int, Device],
    requests: int,
    before: Callable[[int], None] = lambda request: None,
) -> list[tuple[float, dict[int, int]]]:
    """Return each request's latency and the rungs that answered it."""
    log = []
    for request in range(requests):
        before(request)
        rungs = controller.rungs
        taken = {k: device.answer(rungs[k]) for k, device in devices.items()}
        controller.observe(taken)
        log.append((max(seconds.total for seconds in taken.values()), rungs))
    return log


def late(log: list[tuple[float, dict[int, int]]]) -> list[int]:
    return [request for request, (latency, _) in enumerate(log) if latency > TARGET.seconds]


def rungs_of(log: list[tuple[float, dict[int, int]]], device: int) -> list[int]:
    """Return the rungs of a device, one after the other."""
    seen = [rungs[device] for _, rungs in log]
    return [rung for at, rung in enumerate(seen) if at == 0 or rung != seen[at - 1]]


def test_fast_devices_stay_at_the_last_exit() -> None:
    log = serve(LatencyController({1: COSTS, 2: COSTS}, TARGET), {1: Device(), 2: Device(load=7.0)}, 200)
    assert rungs_of(log, 1) == rungs_of(log, 2) == [0]


def test_fourfold_load_moves_a_device_within_five_requests() -> None:
    device = Device(load=6.0)  # 74 ms at the last exit
    controller = LatencyController({1: COSTS}, TARGET)

    def load(request: int) -> None:
        if request == 100:
            device.load *= 4

    log = serve(controller, {1: device}, 400, load)
    assert late(log) == [100, 101, 102, 103, 104]
    # 88 ms are left beside the link: a cost of at most 3.67 at 24 ms each
    assert rungs_of(log, 1) == [0, COSTS.index(3.0)]


def test_device_climbs_rung_by_rung_when_the_load_ends() -> None:
    device = Device(load=6.0)
    controller = LatencyController({1: COSTS}, TARGET)

    def load(request: int) -> None:
        device.load = 24.0 if 100 <= request < 300 else 6.0

    log = serve(controller, {1: device}, 500, load)
    assert late(log) == [100, 101, 102, 103, 104]
    assert rungs_of(log, 1) == [0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
    first = next(request for request, (_, rungs) in enumerate(log) if request > 300 and rungs[1] == 8)
    # it climbs once no more than 4 of the 40 requests in the window are slow
    assert first == 336
    # then one rung every ten requests
    assert next(request for request, (_, rungs) in enumerate(log) if request > first and rungs[1] == 0) == 336 + 80


def test_only_the_slow_device_goes_down() -> None:
    devices = {1: Device(), 2: Device(load=6.0), 3: Device(load=7.0)}
    controller = LatencyController(dict.fromkeys(devices, COSTS), TARGET)

    def load(request: int) -> None:
        devices[2].load = 24.0 if request >= 50 else 6.0

    log = serve(controller, devices, 200, load)
    assert rungs_of(log, 1) == rungs_of(log, 3) == [0]
    assert rungs_of(log, 2) == [0, 9]
    assert late(log) == [50, 51, 52, 53, 54]


def test_slower_link_leaves_less_time_to_compute() -> None:
    device = Device(load=6.0)
    controller = LatencyController({1: COSTS}, TARGET)

    def weather(request: int) -> None:
        device.link = 0.05 if 100 <= request < 200 else 0.002

    log = serve(controller, {1: device}, 400, weather)
    assert late(log) == [100, 101, 102, 103, 104]
    # 40 ms at 6 ms each
    assert rungs_of(log, 1)[:2] == [0, COSTS.index(6.0)]
    assert log[-1][1] == {1: 0}


def test_device_that_stays_late_does_not_hold_others_down() -> None:
    devices = {1: Device(load=6.0), 2: Device(load=6.0)}
    controller = LatencyController(dict.fromkeys(devices, COSTS), TARGET)

    def trouble(request: int) -> None:
        devices[1].load = 24.0 if 20 <= request < 60 else 6.0
        devices[2].link = 0.2 if request >= 100 else 0.002

    log = serve(controller, devices, 400, trouble)
    assert rungs_of(log, 2) == [0, 11]
    assert log[-1][1] == {1: 0, 2: 11}


def test_rare_outliers_change_nothing() -> None:
    device = Device(load=6.0)
    controller = LatencyController({1: COSTS}, TARGET)

    def hiccup(request: int) -> None:
        device.link = 0.5 if request % 10 == 0 else 0.002

    log = serve(controller, {1: device}, 300, hiccup)
    assert len(late(log)) == 30
    assert rungs_of(log, 1) == [0]


def test_one_late_request_too_many_moves_a_device() -> None:
    def moved(period: int) -> bool:
        device = Device(load=6.0)
        log = serve(
            LatencyController({1: COSTS}, TARGET),
            {1: device},
            60,
            lambda request: setattr(device, "load", 24.0 if request % period == 0 else 6.0),
        )
        return len(rungs_of(log, 1)) > 1

    assert moved(9)
    assert not moved(10)


def test_late_requests_are_shared_among_devices() -> None:
    # each is late once in ten, the second at other times: together twice the allowed rate, so both are responsible
    devices = {1: Device(load=6.0), 2: Device(load=6.0), 3: Device(load=6.0)}
    controller = LatencyController(dict.fromkeys(devices, COSTS), TARGET)

    def load(request: int) -> None:
        devices[1].load = 24.0 if request % 10 == 0 else 6.0
        devices[2].load = 24.0 if request % 10 == 5 else 6.0

    log = serve(controller, devices, 30, load)
    assert rungs_of(log, 3) == [0]
    assert log[-1][1][1] > 0
    assert log[-1][1][2] > 0


def test_failed_climbs_become_rarer_until_a_rung_holds() -> None:
    controller = LatencyController({1: COSTS}, TARGET)
    vain: list[int] = []

    def answer(request: int, slow: int) -> None:
        """Let rungs dearer than `slow` take far longer than the other rungs' seconds suggest."""
        before = controller.rungs[1]
        seconds = 0.2 if before < slow else 0.05
        controller.observe({1: Seconds(seconds, seconds)})
        if controller.rungs[1] == slow - 1 < before:
            vain.append(request)

    for request in range(800):
        answer(request, slow=3)
    # 5 late requests take it to rung 8, five climbs of 10 requests to rung 3; there it waits twice as long each time
    assert [b - a for a, b in pairwise(vain)] == [55 + 20, 55 + 40, 55 + 80, 55 + 160, 55 + 160]
    for request in range(800, 1200):
        answer(request, slow=0)
    assert controller.rungs == {1: 0}
    vain.clear()
    for request in range(1200, 1400):
        answer(request, slow=3)
    # the rung held meanwhile: patience is what it was at first
    assert [b - a for a, b in pairwise(vain)] == [55 + 20]


def test_devices_that_are_left_out_stay() -> None:
    controller = LatencyController({1: COSTS, 2: COSTS}, TARGET)
    for _ in range(5):
        controller.observe({1: Seconds(0.3, 0.3), 2: Seconds(0.3, 0.3)})
    down = controller.rungs[2]
    assert down > 0
    for _ in range(100):
        controller.observe({1: Seconds(0.01, 0.01)})
    assert controller.rungs == {1: 0, 2: down}


def test_left_out_device_does_not_climb_on_old_answers() -> None:
    controller = LatencyController({1: COSTS}, TARGET)
    for seconds in [0.3] * 5 + [0.095] * 10 + [0.01] * 20:
        controller.observe({1: Seconds(seconds, seconds)})
    down = controller.rungs[1]
    for _ in range(39):
        controller.observe({})
    assert controller.rungs == {1: down}
    controller.observe({1: Seconds(0.01, 0.01)})
    assert controller.rungs == {1: down - 1}


def test_device_without_answers_for_a_window_stays() -> None:
    controller = LatencyController({1: COSTS, 2: COSTS}, TARGET)
    for _ in range(5):
        controller.observe({2: Seconds(0.3, 0.3)})
    down = controller.rungs[2]
    for _ in range(12):
        controller.observe({2: Seconds(0.095, 0.09)})  # in time, but without room to climb
    for _ in range(60):
        controller.observe({1: Seconds(0.01, 0.01)})
    assert controller.rungs == {1: 0, 2: down}
    assert down > 0


def test_missed_deadline_counts_as_computing() -> None:
    controller = LatencyController({1: COSTS, 2: COSTS}, TARGET)
    for _ in range(5):
        controller.observe({1: Seconds(0.01, 0.008), 2: Seconds(0.5, 0.5)})
    # 0.5 * 2 / 12 = 0.083
    assert controller.rungs == {1: 0, 2: COSTS.index(2.0)}


def test_ladder_of_one_rung_keeps_the_device() -> None:
    controller = LatencyController({1: (3.0,)}, TARGET)
    for _ in range(20):
        controller.observe({1: Seconds(1.0, 1.0)})
    assert controller.rungs == {1: 0}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (replace(TARGET, seconds=0.0), "above 0 seconds"),
        (replace(TARGET, quantile=1.0), "between 0 and 1"),
        (replace(TARGET, room=1.1), "at most 1"),
        (replace(TARGET, patience=41), "patience must be 1 to 40"),
        (replace(TARGET, patience=0), "patience must be 1 to 40"),
    ],
)
def test_impossible_targets_are_refused(target: LatencyTarget, words: str) -> None:
    assert len(target.problems()) == 1
    with pytest.raises(UserError, match=words):
        LatencyController({1: COSTS}, target)


@pytest.mark.parametrize("costs", [{}, {1: ()}, {1: (1.0, 2.0)}, {1: (1.0, 0.0)}])
def test_impossible_ladders_are_refused(costs: dict[int, tuple[float, ...]]) -> None:
    with pytest.raises(UserError, match="must not rise"):
        LatencyController(costs, TARGET)

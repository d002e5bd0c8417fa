"""The time of each exit on devices, measured many times."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from strategies.distree.exits.policies import Entropy, FeatureDifference, OwnHead, ScorePolicy
from strategies.distree.serving import timing
from strategies.distree.serving.timing import REPEATS, WARM_UP, leaving_at, time_exits
from tests.strategies.distree.devices import EXITS, GATE, PIXELS, Tiny, asking, service, serving

NEVER = (float("inf"),) * (EXITS - 1)
RULES = OwnHead(NEVER), Entropy(NEVER), FeatureDifference(NEVER), replace(GATE, thresholds=NEVER)
OWN = {1: OwnHead(NEVER), 2: OwnHead(NEVER)}


class Clock:
    """An aggregator whose student 2 takes twice as long; every third image takes a second more."""

    def __init__(self, late_after: int = 10**6, reached: int = EXITS) -> None:
        self.asked, self.late_after, self.reached = 0, late_after, reached

    def infer(self, image, policies):
        assert image.shape == (1, 3, 8, 8)
        step, self.asked = self.asked // EXITS, self.asked + 1
        exit_index = min(EXITS - 1 - sum(t < 0 for t in policies[1].thresholds), self.reached - 1)
        hiccup = float(step % 3 == 0) + 10 * (step < WARM_UP)
        compute = {k: 0.001 * k * (1 + exit_index) + hiccup for k in (1, 2)}
        return SimpleNamespace(
            missing={2: "late: it sleeps"} if self.asked > self.late_after else {},
            exits={k: torch.tensor([exit_index]) for k in (1, 2)},
            compute=compute,
            arrived={k: taken + 0.5 / k for k, taken in compute.items()},
        )


@pytest.mark.parametrize("exit_index", range(EXITS))
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_all_samples_leave_at_the_timed_exit(exit_index: int, rule: ScorePolicy, tmp_path) -> None:
    tiny = Tiny(tmp_path)
    for number in (1, 2):
        assert tiny.here(number, leaving_at(exit_index, rule)).exits.tolist() == [exit_index] * len(PIXELS)


def test_student_of_one_exit_leaves_there() -> None:
    assert leaving_at(0, FeatureDifference(())).exits(torch.ones(1, 4, 2)).tolist() == [0] * 4


def test_times_exclude_the_warm_up() -> None:
    clock = Clock()
    times = time_exits(clock, OWN, PIXELS)  # type: ignore[arg-type]
    assert clock.asked == (WARM_UP + REPEATS) * EXITS
    hiccups = torch.tensor([float(step % 3 == 0) for step in range(WARM_UP, WARM_UP + REPEATS)], dtype=torch.float64)
    for number, link in ((1, 0.5), (2, 0.25)):
        quiet = torch.tensor([0.001 * number * (1 + j) + link for j in range(EXITS)], dtype=torch.float64)
        torch.testing.assert_close(times[number], quiet[:, None] + hiccups)


def test_device_without_an_answer_cannot_be_timed() -> None:
    with pytest.raises(UserError, match="student 2 cannot be timed: late: it sleeps"):
        time_exits(Clock(late_after=9), OWN, PIXELS)  # type: ignore[arg-type]


def test_exit_that_no_image_reaches_cannot_be_timed() -> None:
    with pytest.raises(UserError, match="student 1 cannot be timed: no image reaches exit 6"):
        time_exits(Clock(reached=5), OWN, PIXELS)  # type: ignore[arg-type]


def test_serving_devices_are_timed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(timing, "REPEATS", 20)
    tiny = Tiny(tmp_path)
    with (
        serving(service(tiny.student(1))) as first,
        serving(service(tiny.student(2), slowdown=5.0)) as second,
        asking(tiny, {1: first, 2: second}) as aggregator,
    ):
        times = time_exits(aggregator, OWN, PIXELS)
    assert all(taken.shape == (EXITS, 20) for taken in times.values())
    middle = {number: taken.median(1).values for number, taken in times.items()}
    assert all(0 < taken[0] < taken[-1] for taken in middle.values())
    assert middle[2][-1] > 2 * middle[1][-1]

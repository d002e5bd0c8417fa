"""What exits take on devices: medians over many images, of each exit alone."""

from types import SimpleNamespace

import pytest
import torch

from common.errors import UserError
from strategies.distree.timing import REPEATS, WARM_UP, leaving_at, time_exits
from tests.strategies.distree.devices import EXITS, PIXELS, Tiny, asking, service, serving


class Clock:
    """An aggregator whose student 2 takes twice as long; every third image takes a second more."""

    def __init__(self, late_after: int = 10**6, reached: int = EXITS) -> None:
        self.asked, self.late_after, self.reached = 0, late_after, reached

    def infer(self, image, policies):
        assert image.shape == (1, 3, 8, 8)
        step, self.asked = self.asked // EXITS, self.asked + 1
        exit_index = min(EXITS - 1 - sum(t == 0 for t in policies[1].thresholds), self.reached - 1)
        hiccup = float(step % 3 == 0) + 10 * (step < WARM_UP)
        compute = {k: 0.001 * k * (1 + exit_index) + hiccup for k in (1, 2)}
        return SimpleNamespace(
            missing={2: "late: it sleeps"} if self.asked > self.late_after else {},
            exits={k: torch.tensor([exit_index]) for k in (1, 2)},
            compute=compute,
            arrived={k: taken + 0.5 / k for k, taken in compute.items()},
        )


@pytest.mark.parametrize("exit_index", range(EXITS))
def test_everybody_leaves_at_the_exit_that_is_timed(exit_index: int, tmp_path) -> None:
    tiny = Tiny(tmp_path)
    for number in (1, 2):
        assert tiny.here(number, leaving_at(exit_index, EXITS)).exits.tolist() == [exit_index] * len(PIXELS)


def test_a_student_of_one_exit_leaves_there() -> None:
    assert leaving_at(0, 1).exits(torch.ones(1, 4, 2)).tolist() == [0] * 4


def test_exits_take_the_median_without_the_warm_up() -> None:
    clock = Clock()
    times = time_exits(clock, (1, 2), EXITS, PIXELS)  # type: ignore[arg-type]
    assert clock.asked == (WARM_UP + REPEATS) * EXITS
    assert times.compute[1] == pytest.approx([0.001 * (1 + j) for j in range(EXITS)])
    assert times.compute[2] == pytest.approx([0.002 * (1 + j) for j in range(EXITS)])
    assert times.links == pytest.approx({1: 0.5, 2: 0.25})


def test_a_device_that_does_not_answer_cannot_be_timed() -> None:
    with pytest.raises(UserError, match="student 2 cannot be timed: late: it sleeps"):
        time_exits(Clock(late_after=9), (1, 2), EXITS, PIXELS)  # type: ignore[arg-type]


def test_an_exit_that_no_image_reaches_cannot_be_timed() -> None:
    with pytest.raises(UserError, match="student 1: no image gets to exit 6"):
        time_exits(Clock(reached=5), (1, 2), EXITS, PIXELS)  # type: ignore[arg-type]


def test_devices_that_serve_are_timed_by_their_own_clocks(tmp_path) -> None:
    tiny = Tiny(tmp_path)
    with (
        serving(service(tiny.student(1))) as first,
        serving(service(tiny.student(2), slowdown=5.0)) as second,
        asking(tiny, {1: first, 2: second}) as aggregator,
    ):
        times = time_exits(aggregator, (1, 2), EXITS, PIXELS)
    assert all(0 < taken[0] < taken[-1] for taken in times.compute.values())
    assert times.compute[2][-1] > 2 * times.compute[1][-1]
    assert all(0 < link < 1 for link in times.links.values())

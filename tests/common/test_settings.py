from dataclasses import dataclass

import pytest

from common.settings import Settings, above_zero, at_least, at_most, key, one_of


@dataclass(frozen=True)
class Toy(Settings):
    SECTION = "toy"

    server_lr: float = 0.5
    mode: str = "a"


def test_a_key_is_written_as_a_user_types_it():
    assert key("toy", "server_lr") == "toy.server-lr"


def test_a_section_without_checks_has_no_problems():
    assert read_section(Toy).problems == []


@pytest.mark.parametrize(
    ("value", "low", "high", "positive"),
    [(0.5, True, True, True), (0.0, True, True, False), (-0.1, False, True, False), (1.1, True, False, True)],
)
def test_bounds(value, low, high, positive):
    toy = Toy(server_lr=value)
    assert at_least(toy, server_lr=0.0) == ([] if low else [f"toy.server-lr is {value}, must be at least 0.0"])
    assert at_most(toy, server_lr=1.0) == ([] if high else [f"toy.server-lr is {value}, must be at most 1.0"])
    assert above_zero(toy, "server_lr") == ([] if positive else [f"toy.server-lr is {value}, must be above 0"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(value):
    toy = Toy(server_lr=value)
    assert at_least(toy, server_lr=0.0)
    assert above_zero(toy, "server_lr")


def test_choices():
    assert one_of(Toy(), mode=("a", "b")) == []
    assert one_of(Toy(mode="c"), mode=("a", "b")) == ["toy.mode is 'c', must be one of a, b"]

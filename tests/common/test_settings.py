from typing import Literal

import pytest
from pydantic import Field, ValidationError

from common.settings import DistinctInts, Floats, Settings, key, keys, like, must_be, read_section, without


class Toy(Settings):
    """A toy."""

    SECTION = "toy"

    server_lr: float = Field(0.5, ge=0, lt=1)
    """learning rate"""
    count: int = Field(3, ge=1)
    """number of things"""
    mode: Literal["a", "b"] = "a"
    """way"""
    cuts: DistinctInts = ()
    """places"""
    weights: Floats = ()
    """shares"""
    on: bool = False
    """switch"""
    note: str = ""
    """text"""

    def other_mistakes(self) -> list[str]:
        """Check a pair of fields."""
        return ["toy.count is above 9, needs toy.mode b"] if self.count > 9 and self.mode == "a" else []


def test_a_key_is_written_as_a_user_types_it():
    assert key("toy", "server_lr") == "toy.server-lr"
    assert list(keys(Toy))[:2] == ["toy.server-lr", "toy.count"]


def test_docstring_below_a_field_is_its_explanation():
    assert keys(Toy)["toy.server-lr"].description == "learning rate"
    assert must_be(keys(Toy)["toy.server-lr"]) == "a number, at least 0 and below 1"
    assert must_be(keys(Toy)["toy.cuts"]) == "whole numbers with commas between them"


def test_values_are_read_by_field_or_by_key():
    assert (
        read_section(Toy, server_lr=0.25) == read_section(Toy, **{"server-lr": 0.25}) == (Toy(server_lr=0.25), {}, [])
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"server_lr": 0}, 0.0),
        ({"cuts": "2, 3 ,5"}, (2, 3, 5)),
        ({"cuts": 4}, (4,)),
        ({"cuts": (4, 5)}, (4, 5)),
        ({"cuts": " "}, ()),
        ({"weights": ".5,1"}, (0.5, 1.0)),
        ({"weights": "1,1"}, (1.0, 1.0)),
    ],
)
def test_lists_and_whole_numbers_are_taken(values, expected):
    reading = read_section(Toy, **values)
    assert not reading.problems
    (name,) = values
    assert getattr(reading.section, name) == expected
    assert all(type(item) is type(expected[0]) for item in expected or ()) if isinstance(expected, tuple) else True


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("server_lr", "fast", "toy.server-lr is 'fast', must be a number, at least 0 and below 1"),
        ("server_lr", True, "toy.server-lr is true, must be a number, at least 0 and below 1"),
        ("server_lr", 1.0, "toy.server-lr is 1.0, must be at least 0 and below 1"),
        ("server_lr", float("nan"), "toy.server-lr is nan, must be a finite number, at least 0 and below 1"),
        ("server_lr", float("-inf"), "toy.server-lr is -inf, must be a finite number, at least 0 and below 1"),
        ("count", 2.0, "toy.count is 2.0, must be a whole number, at least 1"),
        ("count", True, "toy.count is true, must be a whole number, at least 1"),
        ("count", 0, "toy.count is 0, must be at least 1"),
        ("mode", "B", "toy.mode is 'B', must be one of a, b; do you mean b?"),
        ("mode", 1, "toy.mode is 1, must be one of a, b"),
        ("cuts", "2,three", "toy.cuts is '2,three', must be whole numbers with commas between them"),
        ("cuts", "2,,3", "toy.cuts is '2,,3', has an empty item: remove the comma, or write what is missing"),
        ("cuts", "2,", "toy.cuts is '2,', has an empty item: remove the comma, or write what is missing"),
        ("cuts", "2,3,2", "toy.cuts is '2,3,2', has 2 twice: remove one"),
        ("weights", "1,inf", "toy.weights is '1,inf', must be finite numbers with commas between them"),
        ("on", 1, "toy.on is 1, must be true or false"),
        ("note", 3, "toy.note is 3, must be text"),
    ],
)
def test_each_mistake_is_one_sentence(name, value, sentence):
    reading = read_section(Toy, **{name: value})
    assert reading.problems == [sentence]
    assert reading.section == Toy()
    with pytest.raises(ValidationError):
        Toy(**{name: value})


def test_all_mistakes_of_a_section_come_at_once():
    assert len(read_section(Toy, server_lr=-1, count="x", cuts="1,1", note=2).problems) == 4


def test_checks_of_pairs_skip_keys_that_are_wrong():
    assert read_section(Toy, count=10).others == ["toy.count is above 9, needs toy.mode b"]
    assert read_section(Toy, count=10, server_lr=-1).others == ["toy.count is above 9, needs toy.mode b"]
    assert read_section(Toy, count=10, mode="c").others == []
    with pytest.raises(ValidationError, match=r"needs toy\.mode b"):
        Toy(count=10)


def test_without_compares_whole_keys():
    sentences = ["toy.count-all is 1", "toy.count is 2", "other.toy.count is 3"]
    assert without(sentences, ["toy.count"]) == ["toy.count-all is 1", "other.toy.count is 3"]
    assert without(sentences, []) == sentences


def test_changed_checks_its_values():
    assert Toy(count=2).changed(mode="b") == Toy(count=2, mode="b")
    with pytest.raises(ValidationError):
        Toy().changed(count=0)
    with pytest.raises(ValidationError):
        Toy().changed(number=1)


def test_sections_are_hashable_and_cannot_change():
    assert len({Toy(), Toy(count=3), Toy(count=4)}) == 2
    with pytest.raises(ValidationError):
        Toy().count = 4


def test_like_ignores_case_and_underscores():
    assert like("FedProx", ["fedprox", "fedavg"]) == "; do you mean fedprox?"
    assert like("per_round", ["per-round"]) == "; do you mean per-round?"
    assert like("zzz", ["fedprox"]) == ""

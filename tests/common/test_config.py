import dataclasses
from dataclasses import dataclass
from typing import Literal

import pytest

from common.config import RunConfig, load_config, replace
from common.errors import UserError
from common.settings import Settings, at_least, key, one_of


@dataclass(frozen=True)
class ToySettings(Settings):
    SECTION = "toy"

    strength: float = 1.0
    mode: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)

    def problems(self) -> list[str]:
        return at_least(self, strength=0.0)


METHODS = (ToySettings,)


def test_absent_keys_keep_their_defaults():
    assert load_config({}) == RunConfig()


def test_flat_is_the_inverse_of_load_config():
    config = replace(
        load_config({"toy.strength": 0.25, "toy.sizes": "3,4,5"}, METHODS),
        run={"seed": 7, "name": "x"},
        network={"exits": (2, 5), "tiers": (1, 2)},
        objective={"exit_weights": (0.5, 1.0)},
        clients={"per_round": 3, "autocast": True},
    )
    assert load_config(config.flat(), METHODS) == config
    assert config.flat()["network.exits"] == "2,5"
    assert set(map(type, config.flat().values())) <= {str, int, float, bool}


def test_every_field_of_every_section_is_in_the_flat_form():
    config = RunConfig()
    expected = {
        key(name, field.name)
        for name in (kind.SECTION for kind in RunConfig.COMMON)
        for field in dataclasses.fields(getattr(config, name))
    }
    assert set(config.flat()) == expected


def test_lists_are_written_with_commas():
    config = load_config({"network.exits": "2, 3,5", "network.tiers": 3, "objective.exit-weights": "0.5,1"})
    assert config.network.exits == (2, 3, 5)
    assert config.network.tiers == (3,)
    assert config.objective.exit_weights == (0.5, 1.0)


def test_an_empty_text_is_an_empty_list():
    assert load_config({"network.exits": ""}).network.exits == ()


def test_a_whole_number_does_for_a_float_but_not_the_other_way_round():
    assert load_config({"train.lr": 1}).train.lr == 1.0
    with pytest.raises(UserError, match=r"run\.rounds = 2\.5: must be int, not float"):
        load_config({"run.rounds": 2.5})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.lr", True, "must be float, not bool"),
        ("clients.count", True, "must be int, not bool"),
        ("clients.autocast", 1, "must be bool, not int"),
        ("run.name", 3, "must be str, not int"),
        ("network.exits", "2,three", "invalid literal for int"),
        ("toy.mode", "c", "must be one of a, b"),
        ("train.lr", float("nan"), "train.lr is nan, must be at least 0.0"),
        ("train.lr", float("inf"), "train.lr is inf"),
        ("train.batch-size", 1, "train.batch-size is 1, must be at least 2"),
        ("round.quorum", 1.5, "round.quorum is 1.5, must be at most 1.0"),
        ("server.device", "tpu", "server.device is 'tpu', must be one of auto, cpu, cuda"),
        ("clients.device", "tpu", "clients.device is 'tpu'"),
        ("clients.per-round", 21, "clients.per-round is 21 but there are only 20 clients"),
        ("data.alpha", 0.0, "data.alpha is 0.0, must be at least 0.001"),
        ("objective.name", "best", "objective.name is 'best', must be one of joint"),
        ("toy.strength", -1.0, "toy.strength is -1.0, must be at least 0.0"),
    ],
)
def test_a_mistake_is_told_with_its_key(name, value, message):
    with pytest.raises(UserError) as caught:
        load_config({name: value}, METHODS)
    assert message in str(caught.value)
    assert str(caught.value).count("\n  - ") == 1


def test_all_mistakes_come_in_one_message():
    flat = {"run.round": 3, "traim.lr": 0.1, "train.lr": "fast", "run.rounds": 0, "data.validation": 1.0, "toy.mode": 1}
    with pytest.raises(UserError) as caught:
        load_config(flat, METHODS)
    message = str(caught.value)
    assert message.count("\n  - ") == 6
    for part in ("unknown key 'run.round'", "unknown key 'traim.lr'", "train.lr = 'fast'", "run.rounds is 0",
                 "data.validation", "toy.mode = 1"):  # fmt: skip
        assert part in message


def test_unions_are_refused():
    @dataclass(frozen=True)
    class Bad(Settings):
        SECTION = "bad"

        value: int | None = None

    with pytest.raises(UserError, match="unions are not supported"):
        load_config({"bad.value": 1}, [Bad])


def test_one_of_names_the_section():
    assert one_of(ToySettings(), mode=("x",)) == ["toy.mode is 'a', must be one of x"]


def test_replace_changes_fields_and_nothing_else():
    config = replace(RunConfig(), run={"seed": 2})
    assert config.run.seed == 2
    assert dataclasses.replace(config, run=RunConfig().run) == RunConfig()

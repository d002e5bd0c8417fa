import dataclasses
from typing import Literal

import pytest
from pydantic import Field

from common.config import RunConfig, fields_of, load_config, replace
from common.errors import UserError
from common.settings import Floats, Settings, key


class ToySettings(Settings):
    """A toy."""

    SECTION = "toy"

    strength: float = Field(1.0, ge=0)
    """how strong"""
    mode: Literal["a", "b"] = "a"
    """way"""
    sizes: Floats = (1, 2)
    """sizes"""


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
        key(name, field)
        for name in (kind.SECTION for kind in RunConfig.COMMON)
        for field in type(getattr(config, name)).model_fields
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
    with pytest.raises(UserError, match=r"run\.rounds is 2\.5, must be a whole number"):
        load_config({"run.rounds": 2.5})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train.lr", True, "train.lr is true, must be a number, at least 0"),
        ("clients.count", True, "clients.count is true, must be a whole number, at least 1"),
        ("clients.autocast", 1, "clients.autocast is 1, must be true or false"),
        ("run.name", 3, "run.name is 3, must be text"),
        ("run.name", "my run", "run.name is 'my run', must be letters, digits, '.', '_' and '-', 80 at most"),
        ("run.name", "x" * 81, "80 at most"),
        ("network.exits", "2,three", "must be whole numbers with commas between them"),
        (
            "network.exits",
            "2,4",
            "network.exits is 2,4: give rising unit counts from 1 that end with 5 for",
        ),
        ("network.tiers", "3,1", "network.tiers is 3,1: give rising exit counts from 1 that end with 4, all exits"),
        ("network.name", "resnet50", "one of convnet, deit_tiny, lenet, resnet18, .*; do you mean resnet18?"),
        ("toy.mode", "c", "must be one of a, b"),
        ("train.lr-decay", 0, "train.lr-decay is 0, must be above 0"),
        ("train.lr", float("nan"), "train.lr is nan, must be a finite number, at least 0"),
        ("train.batch-size", 1, "train.batch-size is 1, must be at least 2"),
        ("round.quorum", 1.5, "round.quorum is 1.5, must be at least 0 and at most 1"),
        ("server.device", "tpu", "server.device is 'tpu', must be one of auto, cpu, cuda"),
        ("clients.device", "gpu", "clients.device is 'gpu'"),
        ("clients.per-round", 21, "clients.per-round is 21, must be at most clients.count, 20"),
        ("data.alpha", 0.0, "data.alpha is 0.0, must be at least 0.001"),
        ("objective.name", "best", "objective.name is 'best', must be one of joint"),
        ("toy.strength", -1.0, "toy.strength is -1.0, must be at least 0"),
        ("run.round", 3, "run.round is unknown; do you mean run.rounds?"),
        ("train.batch_size", 3, "train.batch_size is unknown; do you mean train.batch-size?"),
        ("Train.LR", 3, "Train.LR is unknown; do you mean train.lr?"),
        ("train.learning_rate", 3, "train.learning_rate is unknown; do you mean train.lr?"),
        ("lr", 3, "lr is unknown; do you mean train.lr?"),
        ("train.rounds", 3, "train.rounds is unknown; do you mean run.rounds?"),
        ("clients.batch-size", 3, "do you mean server.batch-size or train.batch-size?"),
        ("zzz", 3, "zzz is unknown; `python -m server config --all` lists all keys"),
    ],
)
def test_each_mistake_names_key_and_remedy(name, value, message):
    with pytest.raises(UserError) as caught:
        load_config({name: value}, METHODS)
    assert message.partition(".*")[0] in str(caught.value)
    assert message.rpartition(".*")[2] in str(caught.value)
    assert str(caught.value).count("\n  - ") == 1


def test_all_mistakes_come_in_one_message():
    flat = {"run.round": 3, "traim.lr": 0.1, "train.lr": "fast", "run.rounds": 0, "data.validation": 1.0, "toy.mode": 1}
    with pytest.raises(UserError) as caught:
        load_config(flat, METHODS)
    message = str(caught.value)
    assert message.count("\n  - ") == 6
    for part in ("run.round is unknown", "traim.lr is unknown", "train.lr is 'fast'", "run.rounds is 0",
                 "data.validation", "toy.mode is 1"):  # fmt: skip
        assert part in message


def test_checks_of_several_sections_join_the_message():
    def check(config):
        yield f"run.seed {config.run.seed} and train.lr are no friends"
        yield f"run.seed {config.run.seed} is odd"

    with pytest.raises(UserError) as caught:
        load_config({"run.seed": 7, "train.lr": -1.0}, (), check)
    assert str(caught.value).splitlines()[1:] == ["  - train.lr is -1.0, must be at least 0", "  - run.seed 7 is odd"]


def test_every_field_has_one_line_of_explanation():
    assert [k for k, field in fields_of().items() if not field.description or "\n" in field.description] == []


def test_replace_changes_fields_and_nothing_else():
    config = replace(RunConfig(), run={"seed": 2})
    assert config.run.seed == 2
    assert dataclasses.replace(config, run=RunConfig().run) == RunConfig()

from pathlib import Path

import pytest

from common.errors import UserError
from strategies.configuration import read_config, read_resumed, unread


def test_defaults_of_every_section_are_valid() -> None:
    read_config({}, unread)


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"run.strategy": "darkdistil"}, "; do you mean darkdistill?"),
        ({"clients.mix": "0.5,0.5"}, "must give one share, 0 or more, for each of the 4 tiers (network.name"),
        ({"clients.mix": "1,1,1,nan"}, "must give one share"),
        ({"network.name": "transformer4"}, "does not take images: choose one of"),
        ({"data.name": "bbc_news"}, "does not take texts: choose one of transformer4 (data.name is 'bbc_news')"),
        ({"objective.exit-weights": "1,1"}, "but the network has 4 exits: give one each"),
        ({"objective.exit-weights": "1,1,1,1,1"}, "is 1.0,1.0,1.0,1.0,1.0, but the network has 4 exits: give one each"),
        ({"run.strategy": "hetero_splitee", "network.tiers": "2,4"}, "places exits at the cuts: leave network.exits"),
        ({"run.strategy": "cafedistill", "robust.reject": 2.0}, "robust aggregation cannot guard"),
        ({"run.strategy": "hetero_splitee", "splitee.cuts": "2,9"}, "but the network has 5 units: cuts end at 4"),
        ({"run.strategy": "distree"}, "distree.teacher is empty"),
        ({"clients.devices": "pi4:0.5,lapto:0.5"}, "names 'lapto', which is no known profile: choose of jetson_nano, "),
        ({"clients.devices": "pi4:half"}, "has 'pi4:half': write NAME:SHARE"),
        ({"clients.devices": "pi4", "clients.profiles": "/none.toml"}, "clients.profiles '/none.toml' cannot be read"),
        ({"clients.profiles": "/none.toml"}, "but clients.devices is empty"),
        (
            {"clients.devices": "pi4", "clients.mix": "equal"},
            "but clients.mix decides the depths and clients.clock is 'measured': set clients.mix to auto",
        ),
        ({"clients.time-spread": 0.5}, "clients.time-spread is 0.5, but clients.clock is 'measured'"),
        ({"clients.clock": "guessed"}, "clients.clock is 'guessed', must be one of measured, simulated"),
        (
            {"clients.clock": "simulated", "clients.devices": "pi4", "objective.name": "l2w"},
            "the cost table does not count the meta step of objective.name 'l2w'",
        ),
        ({"fedprox.mu": 0.5}, "run.strategy darkdistill does not read it: remove it, or set run.strategy to fedprox"),
        ({"run.strategy": "eefl", "personal.batchnorm": "averaged"}, "cafedistill or fedavg_ft or fedbabu or fedper"),
    ],
)
def test_mistakes_over_several_sections_are_one_sentence(flat: dict[str, object], words: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(flat, unread)  # type: ignore[arg-type]
    (sentence,) = str(caught.value).splitlines()[1:]
    assert words in sentence


@pytest.mark.parametrize(
    "flat",
    [
        {"clients.mix": "1,1", "network.tiers": "2,4"},
        {"clients.mix": "1,1", "network.exits": "2,5"},
        {"run.strategy": "hetero_splitee", "clients.mix": "1,2,3"},  # as many shares as cuts: known later
        {"run.strategy": "hetero_splitee", "splitee.cuts": "2,9", "network.name": "a.b:c"},  # known once it is called
        {"data.name": "bbc_news", "network.name": "transformer4"},
        {"stream.window": 3, "robust.reject": 2.0},  # read by the frame, for every method
    ],
)
def test_possible_values_are_accepted(flat: dict[str, object]) -> None:
    read_config(flat, unread)  # type: ignore[arg-type]


def test_stored_configuration_that_is_refused_names_its_file(tmp_path: Path) -> None:
    assert read_resumed({"train.lr": 0.1}, tmp_path).train.lr == 0.1
    with pytest.raises(UserError, match=rf"^correct {tmp_path}/config.toml, or start a new run: [^$]*train\.lr is -1"):
        read_resumed({"train.lr": -1.0}, tmp_path)


def test_unread_keys_are_those_that_no_compared_method_reads() -> None:
    config = read_config({"fedprox.mu": 0.5, "ditto.pull": 0.5})
    assert [s.partition(" ")[0] for s in unread(config, ["eefl", "fedprox"])] == ["ditto.pull"]
    assert unread(config, ["ditto", "fedprox"]) == []
    assert unread(config, ["no such method"]) == []


def test_wrong_values_hide_what_follows_from_them() -> None:
    with pytest.raises(UserError) as caught:
        read_config({"network.name": "lenett", "network.exits": "1,2", "data.name": "news", "clients.per-round": "x"})
    assert str(caught.value).count("\n  - ") == 3

"""`-c KEY=VALUE` and `--preset`: values, paths and mistakes."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from common.errors import UserError
from server.commands.overrides import read_common, read_overrides, read_run
from server.commands.preset import preset_names
from strategies.configuration import read_config


def overrides(*pairs: str, preset: str = "") -> dict[str, Any]:
    return read_overrides(argparse.Namespace(config=list(pairs), preset=preset))


def test_values_are_toml_or_bare_words():
    assert overrides("train.lr=0.1", "run.rounds=3", "server.autocast=true", "run.name=a-b", "data.name='digits'",
                     "clients.mix=0.5,0.5", "network.exits = 2,4", "run.root=") == {
        "train.lr": 0.1, "run.rounds": 3, "server.autocast": True, "run.name": "a-b", "data.name": "digits",
        "clients.mix": "0.5,0.5", "network.exits": "2,4", "run.root": "",
    }  # fmt: skip
    assert type(overrides("run.rounds=3")["run.rounds"]) is int
    assert overrides("run.name=2025-01-31")["run.name"] == "2025-01-31"
    assert overrides("run.name=a=b")["run.name"] == "a=b"
    with pytest.raises(UserError, match=r"-c train\.lr: write KEY=VALUE"):
        overrides("train.lr")


def test_path_keys_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key in ("data.root", "run.root", "distree.teacher"):
        assert overrides(f"{key}=images")[key] == str(tmp_path / "images")


@pytest.mark.parametrize("preset", preset_names())
def test_presets_are_valid_configurations(preset):
    values = overrides(preset=preset)
    assert values
    config = read_config(values)
    assert {key: config.flat()[key] for key in values} == values
    assert config.run.name == ""  # the launcher names runs


def test_command_line_overrides_a_preset(tmp_path):
    assert overrides("run.rounds=1", preset="demo") == {**overrides(preset="demo"), "run.rounds": 1}
    (tmp_path / "mine.toml").write_text("[train]\nlr = 0.2\n")
    assert overrides(preset=str(tmp_path / "mine.toml")) == {"train.lr": 0.2}


def test_methods_share_a_preset_but_not_its_method() -> None:
    options = argparse.Namespace(config=[], preset="splitee-published")
    assert read_common(options) == {k: v for k, v in read_overrides(options).items() if k != "run.strategy"}
    options.config = ["run.strategy = eefl"]  # which the verb refuses
    assert read_common(options)["run.strategy"] == "eefl"


@pytest.mark.parametrize(
    ("pair", "value"),
    [("data.mean=0.90", "0.90"), ("data.mean='0.9'", "0.9"), ("run.name=true", "true"), ("distree.widths = 3", "3")],
)
def test_numbers_stay_text_for_text_keys(pair: str, value: str) -> None:
    found = overrides(pair)
    assert list(found.values()) == [value]
    read_config(found | {"distree.students": 1})


def test_numbers_are_parsed_for_number_and_unknown_keys() -> None:
    assert overrides("train.lr=0.1", "server.autocast=true", "x=1") == {
        "train.lr": 0.1, "server.autocast": True, "x": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("train.lr=.5", 0.5),
        ("train.lr=1e-3", 0.001),
        ("train.lr='0.1'", 0.1),
        ('train.lr="0.1"', 0.1),
        ("train.lr = 1", 1),
        ("train.lr=nan", "nan"),
        ("train.lr=", ""),
        ("train.lr=0,1", "0,1"),
        ("run.rounds=2.5", 2.5),
        ("server.autocast=True", True),
        ("server.autocast=FALSE", False),
        ("server.autocast=1", "1"),
        ("network.exits=[2, 5]", "2,5"),
        ('data.classes=["box", "cross"]', "box,cross"),
        ("data.column='", "'"),
        ("run.name='a b'", "a b"),
    ],
)
def test_values_have_the_type_that_their_key_takes(pair: str, value: object) -> None:
    (found,) = overrides(pair).values()
    assert (type(found), str(found)) == (float if value == "nan" else type(value), str(value))


def test_list_items_lose_blanks_and_do_not_repeat() -> None:
    pairs = ("data.classes=box,  cross ", "data.name=devices", "data.image-size=16")
    assert read_config(overrides(*pairs)).data.classes == ("box", "cross")
    with pytest.raises(UserError, match=r"data\.classes is 'box, box', has box twice"):
        read_config(overrides("data.classes=box, box"))


def test_last_value_of_a_repeated_key_counts() -> None:
    assert overrides("run.rounds=1", "run.rounds=3") == {"run.rounds": 3}


@pytest.mark.parametrize(("pair", "method"), [("run.strategy=eefl", "eefl"), ("run.rounds=1", "darkdistill")])
def test_empty_run_name_is_filled_in(pair: str, method: str) -> None:
    values = read_run(argparse.Namespace(config=["run.name=", pair], preset="", resume=None))
    assert str(values["run.name"]).startswith(f"{method}-")


def test_unfit_strategy_is_the_only_mistake() -> None:
    values = read_run(argparse.Namespace(config=["run.strategy=my method"], preset="", resume=None))
    with pytest.raises(UserError) as caught:
        read_config(values)
    assert str(caught.value).count("\n  - ") == 1


def test_tilde_is_the_users_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert overrides("data.root=~/photos") == {"data.root": f"{tmp_path}/photos"}
    assert overrides("data.root=~no-such-user/x")["data.root"].endswith("/~no-such-user/x")


def test_resumed_run_takes_no_other_key(tmp_path: Path) -> None:
    options = argparse.Namespace(config=[f"run.resume={tmp_path}"], preset="", resume=None)
    assert read_run(options) == {"run.resume": str(tmp_path)}
    options.config.append("train.lr=1")
    with pytest.raises(UserError, match=r"--resume keeps the configuration .*: remove train\.lr"):
        read_run(options)


def test_relative_folders_start_at_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = overrides("data.root=photos", "distree.public=cifar100:photos/all", "distree.teacher=/runs/t")
    assert found == {
        "data.root": f"{tmp_path}/photos",
        "distree.public": f"cifar100:{tmp_path}/photos/all",
        "distree.teacher": "/runs/t",
    }
    assert overrides("distree.public=digits") == {"distree.public": "digits"}

"""`-c KEY=VALUE`: what a key takes decides what the text after it is."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from server.commands.overrides import read_overrides
from strategies.factory import read_config


def overrides(*pairs: str) -> dict[str, Any]:
    return read_overrides(argparse.Namespace(config=list(pairs), preset=""))


@pytest.mark.parametrize(
    ("pair", "value"),
    [("data.mean=0.90", "0.90"), ("data.mean='0.9'", "0.9"), ("run.name=true", "true"), ("distree.widths = 3", "3")],
)
def test_a_number_stays_as_it_was_typed_where_the_key_takes_text(pair: str, value: str) -> None:
    found = overrides(pair)
    assert list(found.values()) == [value]
    read_config(found | {"distree.students": 1})


def test_a_number_is_one_where_the_key_takes_numbers_or_is_unknown() -> None:
    assert overrides("train.lr=0.1", "run.tensorboard=true", "x=1") == {
        "train.lr": 0.1,
        "run.tensorboard": True,
        "x": 1,
    }


def test_folders_are_as_where_the_command_is_typed_sees_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = overrides("data.root=photos", "distree.public=cifar100:photos/all", "distree.teacher=/runs/t")
    assert found == {
        "data.root": f"{tmp_path}/photos",
        "distree.public": f"cifar100:{tmp_path}/photos/all",
        "distree.teacher": "/runs/t",
    }
    assert overrides("distree.public=digits") == {"distree.public": "digits"}

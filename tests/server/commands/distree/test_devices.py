"""The options that name the devices serving students."""

import argparse
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.errors import UserError
from server.commands.computing import add_devices
from server.commands.distree import devices
from strategies.distree.model.stored import StoredStudents
from tests.strategies.distree.devices import Tiny


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredStudents:
    return Tiny(tmp_path_factory.mktemp("tiny")).whole


def read(arguments: list[str], token: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_devices(parser, required=True)
    return parser.parse_args([*arguments, "--token-file", str(token)])


@pytest.fixture
def token(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text("t" * 43)
    return file


def test_numbered_maps_students_to_values(stored: StoredStudents) -> None:
    assert devices.numbered(["2=b:2", "1=a:1"], stored, "--student") == {1: "a:1", 2: "b:2"}


@pytest.mark.parametrize(
    "more", [[], ["--certificate", "1=a"], ["--deadline", "20.0"], ["--deadline", "0.5", "--coding", "uint8"]]
)
def test_words_repeat_the_options(more: list[str], stored: StoredStudents, token: Path) -> None:
    options = read(["--student", "1=a:1", *more], token)
    assert devices.words(options, stored) == ["--student", "1=a:1", "--token-file", str(token), *more]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--student", "1=127.0.0.1:1", "--student", "1=127.0.0.1:2"],
            "--student 1=127.0.0.1:2: student 1 already has 127.0",
        ),
        (
            ["--student", "1=127.0.0.1:1", "--student", "01=127.0.0.1:1"],
            "student 1 already has 127.0.0.1:1: give one of them",
        ),
        (
            ["--student", "1=127.0.0.1:1", "--certificate", "1=a", "--certificate", "1=b"],
            "--certificate 1=b: student 1",
        ),
        (["--student", "1=127.0.0.1:1", "--certificate", "2=a"], "give --student 2=HOST:PORT too"),
        (["--student", "1=192.0.2.1:1"], "need TLS"),
        (["--student", "1=127.0.0.1:1", "--deadline", "inf"], "give seconds above 0"),
    ],
)
def test_ask_refuses_wrong_options(arguments: list[str], message: str, stored: StoredStudents, token: Path) -> None:
    with ExitStack() as stack, pytest.raises(UserError, match=message):
        devices.ask(stored, read(arguments, token), stack)

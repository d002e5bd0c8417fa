"""`python -m client`: its verbs, and what they import."""

import pytest

from client import __main__ as command
from tests.support.imports import heavy_imports


@pytest.mark.parametrize("verb", command.VERBS)
def test_main_describes_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m client {verb}" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    commands = [["--help"], *([verb, "--help"] for verb in command.VERBS)]
    assert heavy_imports("client", commands) == ([0] * len(commands), [])


def test_refusals_import_nothing_heavy() -> None:
    start = ["start", "--client-id", "0", "--superlink"]
    commands = [
        ["nonsense"],
        *([verb, "--nonsense"] for verb in command.VERBS),
        [*start, "a.example.org:1"],
        [*start, "127.0.0.1:1", "--capacity", "huge"],
    ]
    assert heavy_imports("client", commands) == ([2] * len(commands), [])

"""`python -m client`: its verbs, and what they import."""

import pytest

from client import __main__ as command
from tests.support.imports import heavy_imports


@pytest.mark.parametrize("verb", ["infer", "serve-student", "start", "probe"])
def test_main_describes_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m client {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--help"], 0),
        (["start", "--help"], 0),
        (["nonsense"], 2),
        (["start", "--nonsense"], 2),
        (["start", "--superlink", "a.example.org:1", "--client-id", "0"], 2),
        (["start", "--superlink", "127.0.0.1:1", "--client-id", "0", "--capacity", "huge"], 2),
    ],
)
def test_help_and_refusals_import_nothing_heavy(words: list[str], code: int) -> None:
    assert heavy_imports("client", *words) == (code, [])

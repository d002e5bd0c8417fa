"""`python -m server`: its verbs and its exit codes."""

import argparse

import pytest

from common.errors import UserError
from server import __main__ as command
from server.commands import env
from tests.support.imports import heavy_imports

VERBS = (
    "run", "compare", "study", "config", "data", "env", "certificates", "start", "register", "submit", "export",
    "offload", "teacher", "students", "calibrate", "infer",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_main_describes_every_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([verb, "--help"])
    assert ended.value.code == 0
    assert f"usage: python -m server {verb}" in capsys.readouterr().out


def test_main_refuses_a_missing_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main([])
    assert ended.value.code == 2
    assert f"{{{','.join(VERBS)}}}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("problem", "code", "message"), [(UserError("oops"), 2, "error: oops\n"), (KeyboardInterrupt(), 130, "")]
)
def test_main_turns_exceptions_into_exit_codes(
    problem: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: argparse.Namespace) -> int:
        raise problem

    monkeypatch.setattr(env, "run", fail)
    assert command.main(["env"]) == code
    assert capsys.readouterr().err == message


def test_help_imports_nothing_heavy() -> None:
    commands = [["--help"], *([verb, "--help"] for verb in VERBS)]
    assert heavy_imports("server", commands) == ([0] * len(commands), [])


def test_refusals_import_nothing_heavy() -> None:
    commands = [
        ["nonsense"],
        *([verb, "--nonsense"] for verb in VERBS),
        ["run", "-c", "nonsense"],
        ["run", "--in-process", "--workers", "2"],
        ["start", "--address", "nonsense"],
        ["submit", "--superlink", "a.example.org:1"],
    ]
    assert heavy_imports("server", commands) == ([2] * len(commands), [])

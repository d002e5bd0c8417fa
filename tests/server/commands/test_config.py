"""`python -m server config`: every key with its value and what it means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server.__main__ import main
from strategies.configuration import read_config

PROJECT = Path(__file__).resolve().parents[3]


def test_all_keys_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--all"]) == 0
    printed = capsys.readouterr().out
    assert [key for key in read_config({}).flat() if f" {key} " not in printed] == []
    assert "clients: The virtual or real clients and how they are hosted." in printed


def test_changed_values_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--preset", "demo", "-c", "train.lr=.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    marked = [line.split()[1] for line in lines if line.strip().startswith("* ")]
    assert marked == [
        "run.rounds", "train.epochs", "train.batch-size", "train.lr", "data.partitioner", "data.alpha",
        "objective.name", "server.evaluate-every",
    ]  # fmt: skip
    (line,) = (line for line in lines if " train.lr " in line)
    assert line.split()[:4] == ["*", "train.lr", "0.5", "0.05"]
    assert "learning rate of the first round" in line


def test_sections_of_other_methods_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "-c", "run.strategy=fedprox"]) == 0
    printed = capsys.readouterr().out
    assert " fedprox.mu " in printed
    assert " robust.trim " in printed
    assert "darkdistill.variant" not in printed


C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, C_LOCALE])
def test_ascii_terminal_gets_no_traceback(variables: dict[str, str]) -> None:
    def printed(*pairs: str) -> "subprocess.CompletedProcess[bytes]":
        words = [sys.executable, "-m", "server", "config", *(word for pair in pairs for word in ("-c", pair))]
        return subprocess.run(words, cwd=PROJECT, env=os.environ | variables, capture_output=True, check=False)

    done = printed("data.column=größe")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"data.column" in done.stdout
    refused = printed("grö=1")
    assert refused.returncode == 2
    assert refused.stderr.startswith(b"error: ")
    assert refused.stderr.isascii()

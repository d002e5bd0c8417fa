"""Every mistake in a configuration is one message, before Flower or Ray start."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from server.__main__ import main
from server.commands import simulator, submit
from tests.server.mistakes import MISTAKES

PROJECT = Path(__file__).resolve().parents[2]
WORST = 3.0  # seconds until the message


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put Flower's home into a folder of its own, and let nothing start."""

    def start(*_: object, **__: object) -> None:
        pytest.fail("a process is started")

    monkeypatch.setenv("FLWR_HOME", str(tmp_path / ".flwr"))
    for module, name in ((simulator, "ray_head"), (simulator, "simulate"), (submit, "connection"), (submit, "deploy")):
        monkeypatch.setattr(module, name, start)
    return tmp_path


def message_of(words: tuple[str, ...], home: Path) -> str:
    """Return what the real command prints to stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *words], cwd=PROJECT, env=os.environ | {"FLWR_HOME": str(home / ".flwr")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_message_names_key_and_remedy(words: tuple[str, ...], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert [part for part in MISTAKES[words] if part not in message] == []
    sentences = message.count("\n  - ") or 1
    assert sentences == (3 if words[0] == "submit" else 1), message


def test_all_mistakes_come_in_one_message(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = ("run.round=3", "train.lr=abc", "run.rounds=0", "data.alpha=0", "network.name=resnet50", "clients.mix=1,x",
             "run.strategy=fedprxo", "data.root=/nowhere", "run.name=my run", "network.exits=1,1")  # fmt: skip
    assert main(["run", *(word for pair in pairs for word in ("-c", pair))]) == 2
    message = capsys.readouterr().err
    assert [key for key, _, _ in (pair.partition("=") for pair in pairs) if key not in message] == ["clients.mix"]


@pytest.mark.parametrize("words", [*MISTAKES][::13], ids=" ".join)
def test_real_command_imports_no_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    script = (
        "import sys, json\nfrom server.__main__ import main\nassert main(sys.argv[1:]) == 2\n"
        "print([name for name in ('flwr', 'ray', 'torch', 'datasets') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *words], cwd=PROJECT, env=os.environ | {"FLWR_HOME": str(tmp_path / ".flwr")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_taken_name_is_refused_at_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = home / "runs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.toml").touch()
    for words in (["run"], ["submit"], ["submit", "--superlink", "192.0.2.1:8000", "--insecure"]):
        assert main([*words, "-c", "run.name=mine"]) == 2
        message = capsys.readouterr().err
        assert "run.name 'mine' is taken" in message
        assert f"--resume {folder}" in message


def test_command_ends_with_the_message(tmp_path: Path) -> None:
    for words in [*MISTAKES][::20]:
        message = message_of(words, tmp_path)
        assert [part for part in MISTAKES[words] if part not in message] == []


@pytest.mark.slow
def test_time_to_every_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {}
    for words in MISTAKES:
        started = time.perf_counter()
        message_of(words, tmp_path)
        seconds[words] = time.perf_counter() - started
    median, worst = statistics.median(seconds.values()), max(seconds.values())
    with capsys.disabled():
        print(f"{len(seconds)} mistakes: median {median:.2f} s, worst {worst:.2f} s")
    assert worst < WORST

"""The stand-in for Flower's command, as real processes."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from client.warm.flower_shim import COMMAND, PACED, environment
from tests.support.deployment import wait_until

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperNode's environment, with a folder of its own for sockets: their paths have to be short."""
    with tempfile.TemporaryDirectory() as folder:
        yield environment(os.environ | {"XDG_RUNTIME_DIR": folder}, tmp_path / "bin")
        for process in shims():
            process.kill()


def shims() -> list[psutil.Process]:
    """The processes that stay beside this one; their parent, the first stand-in, has ended."""
    words = ["--serve", str(os.getpid())]
    return [p for p in psutil.process_iter(["cmdline"]) if words == (p.info["cmdline"] or [])[3:5]]


def command(env: dict[str, str], output: Path, *arguments: str) -> None:
    """Run the command as Flower does, by its name and without waiting for what it starts."""
    with output.open("a") as file:
        subprocess.run([COMMAND, *arguments], env=env, stdout=file, stderr=file, check=True, timeout=120)


def test_one_shim_forks_a_process_for_each_message(env, tmp_path):
    for number in (1, 2):
        command(env, tmp_path / "out", "--parent-pid", str(os.getpid()), "--help")
        wait_until(lambda: (tmp_path / "out").read_text().count("Run a Flower ClientApp") == number, 120, "no help")  # noqa: B023
        assert len(shims()) == 1
    assert "starting Flower's own" not in (tmp_path / "out").read_text()


@pytest.mark.parametrize("arguments", [[], ["--parent-pid", "1"]])
def test_stand_in_becomes_flowers_command_if_no_shim_can_start(env, tmp_path, arguments):
    Path(env["XDG_RUNTIME_DIR"]).chmod(0o700)
    (Path(env["XDG_RUNTIME_DIR"]) / f"earlybloom-{os.getuid()}").mkdir(mode=0o755)
    command(env, tmp_path / "out", *arguments, "--help")
    assert "starting Flower's own" in (tmp_path / "out").read_text()
    assert "Run a Flower ClientApp" in (tmp_path / "out").read_text()
    assert not shims()


def test_forked_process_imports_its_own_apps_packages():
    code = """
import sys
from client.warm import flower_shim
def function():
    sys.exit(any(name.partition(".")[0] == "client" for name in sys.modules) or sys.argv[1:] != ["--token", "x"])
flower_shim._become(["--token", "x"], function)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=False).returncode == 0


def test_command_file_is_replaced_atomically(tmp_path):
    environment({}, tmp_path)
    with (tmp_path / COMMAND).open() as before:  # as a shell opens it
        environment({}, tmp_path)
        assert before.read() == (tmp_path / COMMAND).read_text()
        assert not os.path.samestat(os.fstat(before.fileno()), (tmp_path / COMMAND).stat())
    assert {file.name for file in tmp_path.iterdir()} == {COMMAND, *PACED}


def test_users_poll_interval_is_kept(tmp_path):
    env = environment({"PATH": "/bin", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "2"}, tmp_path)
    assert env == {"PATH": f"{tmp_path}:/bin", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "2"}
    assert float(environment({}, tmp_path)["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"]) < 1

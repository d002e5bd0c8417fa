"""`python -m server env`: lines for a shell's `eval`."""

import shlex
from pathlib import Path

import pytest

from common.flower.processes import PROJECT
from server.__main__ import main


@pytest.mark.parametrize("before", [None, ""])
def test_env_exports_the_projects_home(
    before: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("FLWR_HOME")
    if before is not None:
        monkeypatch.setenv("FLWR_HOME", before)
    assert main(["env"]) == 0
    assert f"export FLWR_HOME={shlex.quote(str(PROJECT / '.flwr'))}" in capsys.readouterr().out.splitlines()


def test_env_exports_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "a home"
    monkeypatch.setenv("FLWR_HOME", str(home))
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.delenv("FLWR_DISABLE_UPDATE_CHECK", raising=False)
    assert main(["env"]) == 0
    assert home.is_dir()
    exported = dict(shlex.split(line)[1].split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert exported["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert exported["FLWR_HOME"] == str(home)
    assert "FLWR_TELEMETRY_ENABLED" not in exported

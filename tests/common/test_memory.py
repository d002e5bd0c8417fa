from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from common import memory
from common.memory import CONTROL_GROUPS, available_memory

MB = 10**6


@pytest.fixture(params=CONTROL_GROUPS, ids=["v2", "v1"])
def group(request, tmp_path: Path, monkeypatch) -> memory.ControlGroup:
    """A container with 500 MB, of which 300 MB are in use, 100 MB of these as page cache."""
    group = request.param._replace(folder=tmp_path)
    (tmp_path / group.limit).write_text(f"{500 * MB}\n")
    (tmp_path / group.used).write_text(f"{300 * MB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {200 * MB}\n{group.cache} {100 * MB}\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", (group,))
    return group


def machine(monkeypatch, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=available))


def test_containers_limit_binds(group, monkeypatch):
    machine(monkeypatch, 16_900 * MB)
    assert available_memory() == 300 * MB


def test_machine_binds_when_it_has_less(group, monkeypatch):
    machine(monkeypatch, 200 * MB)
    assert available_memory() == 200 * MB


@pytest.mark.parametrize("text", ["max", str(2**63 - 4096)])
def test_container_without_limit_has_the_machines_memory(group, monkeypatch, text):
    machine(monkeypatch, 200 * MB)
    (group.folder / group.limit).write_text(text)
    assert available_memory() == 200 * MB


def test_full_container_has_nothing(group, monkeypatch):
    machine(monkeypatch, 200 * MB)
    (group.folder / group.used).write_text(str(700 * MB))
    assert available_memory() == 0

"""What all verbs share."""

import os
from pathlib import Path

import pytest

from common.console.verbs import Verb, call
from common.flower.processes import PROJECT
from common.paths import cache_root, runs_root, store_root


def test_every_verb_finds_runs_states_and_caches_beside_flowers_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLWR_HOME")
    with pytest.raises(SystemExit):
        call("program", None, {"infer": Verb("", "client.commands.infer")}, ["--help"])
    assert Path(os.environ["FLWR_HOME"]) == PROJECT / ".flwr"
    assert runs_root("") == PROJECT / "runs"
    assert {cache_root().parent, store_root("").parent} == {PROJECT / ".cache"}

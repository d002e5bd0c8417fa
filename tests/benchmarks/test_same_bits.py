"""The comparison of results across refactors: it detects a changed bit and maps renamed keys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.same_bits import RECORDER, compare, differences, renamed
from benchmarks.same_bits_record import plain, tensors

PROJECT = Path(__file__).resolve().parents[2]


def test_changed_bit_changes_digest():
    weights = torch.ones(3)
    same, other = torch.ones(3), torch.tensor([1.0, 1.0, 1.0 + 2**-23])
    (name, digest), (_, again), (_, changed) = (next(tensors("w", {"key": t})) for t in (weights, same, other))
    assert name == "w/key"
    assert digest == again != changed
    assert digest != next(tensors("w", {"key": torch.ones(3, 1)}))[1]  # another shape


def test_time_dependent_values_are_left_out():
    values = {"loss": 0.5, "server_seconds": 1.0, "exits": [0.1, 0.2], "nested": {"held_bytes": 3, "n": 1}}
    assert dict(plain("m", values)) == {"m/loss": 0.5, "m/exits/0": 0.1, "m/exits/1": 0.2, "m/nested/n": 1}


def test_differences_name_both_sides():
    lines = differences({"a": 1, "b": 2}, {"b": 3, "c": 4})
    assert lines == ["a: only before", "c: only now", "b: 2 -> 3"]


def test_renamed_keys_are_mapped_and_dropped_keys_left_out():
    assert renamed({"m/old/x": 1, "m/gone": 2}, {"old": "new", "gone": ""}) == {"m/new/x": 1}


def test_compare_fails_only_for_difference_or_missing_method(capsys):
    one = {"eefl": {"weights/a": "1"}}
    assert compare(one, {"eefl": {"weights/a": "1"}, "median": {"weights/a": "9"}})
    assert "median" in capsys.readouterr().out
    assert not compare(one, {"eefl": {"weights/a": "2"}})
    assert not compare(one, {})


@pytest.mark.slow
def test_record_has_weights_metrics_and_stored_client_states(tmp_path):
    out = tmp_path / "record.json"
    env = os.environ | {"PYTHONPATH": str(PROJECT), "FLWR_HOME": str(tmp_path / ".flwr")}
    subprocess.run([sys.executable, "-P", str(RECORDER), str(out), "fedper"], cwd=PROJECT, env=env, check=True)
    found = json.loads(out.read_text())["fedper"]
    kinds = {key.split("/")[0] for key in found}
    assert kinds == {"weights", "metrics", "kept"}
    assert any("own.exits" in key for key in found)

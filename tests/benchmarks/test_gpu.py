"""The stages of `python -m benchmarks.gpu`, with little work on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import checks, steps
from benchmarks.gpu.host import CPU, Host, Ran, run
from common.networks import NetworkSpec

TINY = {
    "run.strategy": "eefl", "run.rounds": 2, "clients.count": 3, "clients.per-round": 2, "network.name": "lenet",
    "network.width": 3, "data.limit": 60,
}  # fmt: skip


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(CPU, tmp_path, small=True)


def test_distance_is_a_share_of_the_way():
    start = {"w": torch.tensor([0.0, 0.0]), "count": torch.tensor(1)}
    one = Ran(start, {"w": torch.tensor([3.0, 4.0]), "count": torch.tensor(5)}, [])
    other = Ran(start, {"w": torch.tensor([3.0, 3.5]), "count": torch.tensor(5)}, [])
    assert other.distance(one) == pytest.approx(0.1)
    assert (one.distance(one), one.same_bits(one), other.same_bits(one)) == (0, True, False)


def test_runs_with_one_seed_have_the_same_bits_and_with_another_do_not(host):
    one, two, other = (run(host, name, {**TINY, "run.seed": seed}) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one.same_bits(two)
    assert not other.same_bits(one)
    assert other.distance(one) > checks.TOLERANCE
    assert one.round_seconds > 0


@pytest.mark.slow
def test_killed_runs_continue_with_the_same_bits(host):
    assert checks.resumed(host)["same_bits"] == {"darkdistill": True, "cafedistill": True}


def test_copies_trained_together_are_the_same(host):
    assert checks.together(host)["passed"]


def test_prediction_is_the_longer_of_launches_and_arithmetic():
    assert steps.predicted(1000, 120e9, "float32") == pytest.approx({"launches": 8, "arithmetic": 1, "step": 8})
    assert steps.predicted(100, 960e9, "bf16")["step"] == pytest.approx(4)
    kernels, flops = steps.work(NetworkSpec("lenet", 10, (1, 8, 8), width=3), False)
    assert 20 < kernels < 200
    assert flops > 0


def test_ways_that_need_a_gpu_say_so(host, monkeypatch):
    monkeypatch.setattr(steps, "SPECS", {"tiny": NetworkSpec("lenet", 10, (1, 8, 8), width=3)})
    found = steps.measure(host)["steps"]["tiny, float32"]
    assert found["CUDA graph, fast"] == found["compiled, fast"] == "needs a GPU"
    assert all(found[way] > 0 for way in ("as it is", "as it is, fast", "8 models at once, fast"))


@pytest.mark.slow
def test_command_reports_a_stage_that_breaks(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu", "memory", "--device", "cpu", "--small"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert (done.returncode, "skipped" in done.stdout) == (0, True)
    out = tmp_path / "found.json"
    subprocess.run([*command, "--out", str(out)], check=True, cwd=Path(__file__).parents[2])
    assert json.loads(out.read_text()) == {"skipped": "torch counts a GPU's memory only"}
    broken = subprocess.run([*command[:3], "nothing"], capture_output=True, text=True, check=False)
    assert (broken.returncode, "there is no stage 'nothing'" in broken.stderr) == (2, True)

import platform
import subprocess
import sys

import pytest
import torch

from common.devices import autocast, deterministic, pick_device, threads
from common.errors import UserError


def test_cpu_is_always_available():
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_takes_the_gpu_if_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_missing_gpu_is_reported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")


def test_threads_are_restored_even_after_an_error():
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise RuntimeError
    assert torch.get_num_threads() == before


def test_autocast_is_bf16_if_enabled():
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), True):
        assert (x @ x).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), False):
        assert (x @ x).dtype == torch.float32


def test_deterministic_only_warns():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


FAULTS = """
import resource, sys, torch
from common.devices import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
torch.set_num_threads(1)
layers = [torch.nn.Conv2d(16, 16, 3, padding=1) for _ in range(6)]
def work():
    x = torch.ones(32, 16, 32, 32)
    with torch.no_grad():
        for layer in layers:
            x = torch.relu(layer(x))
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
before = faults()
for _ in range(10):
    work()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_is_not_mapped_anew():
    command = [sys.executable, "-c", FAULTS]
    found = [int(subprocess.run([*command, how], capture_output=True, check=True).stdout) for how in ("drop", "keep")]
    assert found[1] < found[0] / 5

import os
import platform
import subprocess
import sys

import pytest
import torch

from common.devices import autocast, channels_last, pick_device, set_kernels, threads
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


def test_kernels_are_repeatable_unless_they_shall_be_fast():
    before = torch.get_deterministic_debug_mode(), torch.get_float32_matmul_precision()
    try:
        set_kernels(fast=True)
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.benchmark
        assert torch.get_float32_matmul_precision() == "high"
        set_kernels()
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.get_float32_matmul_precision() == "highest"
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.set_deterministic_debug_mode(before[0])
        torch.set_float32_matmul_precision(before[1])


def test_maps_lie_with_their_channels_last_and_other_tensors_as_they_were():
    maps, tokens = torch.arange(48.0).reshape(2, 3, 4, 2), torch.ones(2, 5)
    moved = channels_last(maps)
    assert moved.stride() == (24, 1, 6, 3)
    assert torch.equal(moved, maps)
    assert channels_last(moved) is moved
    assert channels_last(tokens) is tokens


@pytest.mark.parametrize("channels", [1, 3])
def test_convolutions_hand_channels_last_on(channels):
    maps = torch.randn(6, channels, 8, 8)
    layer = torch.nn.Conv2d(channels, 4, 3)
    assert layer(channels_last(maps)[torch.tensor([4, 1])]).stride() == (144, 1, 24, 4)
    assert layer(maps).stride() == (144, 36, 6, 1)


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

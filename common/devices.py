"""The torch device, number of threads, autocast, memory and kernels of a process."""

import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from common.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)


def pick_device(wanted: str) -> torch.device:
    """Return the device for "auto", "cpu" or "cuda"; raises `UserError` for "cuda" without a GPU."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' is configured, but torch sees no GPU: use 'auto' or 'cpu'")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted)


def now(device: torch.device) -> float:
    """Return seconds, after everything queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on the device; a GPU fetches it from pinned memory while this process goes on."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def channels_last(maps: torch.Tensor) -> torch.Tensor:
    """Return images or feature maps (B, C, H, W) with the channels of a pixel side by side in a CPU's memory.

    Convolutions hand this layout on, and train up to 1.7 times as fast with it (`benchmarks/layout.py`). A GPU's maps
    and tensors of another shape stay as they are.
    """
    if maps.ndim != 4 or maps.is_cuda:
        return maps
    _, channels, height, width = maps.shape
    strides = channels * height * width, 1, width * channels, channels
    maps = maps.contiguous(memory_format=torch.channels_last)
    # of one channel, or one pixel, torch leaves the strides as they were, and convolutions go by them
    return maps if maps.stride() == strides else maps.as_strided(maps.shape, strides)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Use this many torch threads inside; with another number sums may differ in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_memory() -> None:
    """Make this process reuse the memory of freed tensors; without glibc do nothing.

    By default glibc gives large blocks back to the kernel, which maps them anew, page by page: 10 to 20 % of a training
    step on the CPU, and more than half of a small network's inference at batch 32 (`benchmarks/exit_time.py`).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, 1 << 30)
        mallopt(M_MMAP_THRESHOLD, 1 << 25)  # glibc's maximum


def autocast(device: torch.device, enabled: bool) -> AbstractContextManager[None]:
    """Return a bf16 autocast context for this device."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def set_kernels(*, fast: bool = False) -> None:
    """Make this process use kernels whose result is the same in every run; where CUDA has none, torch warns.

    With `fast` a GPU takes the quickest kernels instead: cuDNN tries several, sums may be taken in any order, and
    float32 products round their factors to 10 bits (TF32). Then two runs differ in their last bits.
    """
    torch.backends.cudnn.benchmark = fast
    torch.set_float32_matmul_precision("high" if fast else "highest")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS has no repeatable products
    # the same switch as use_deterministic_algorithms(True, warn_only=True), which first imports torch's compiler
    torch.set_deterministic_debug_mode("default" if fast else "warn")
    # torch would also fill every new tensor with NaN, to reveal reads before the first write: 5 to 7 % of a step
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

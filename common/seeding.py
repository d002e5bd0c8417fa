"""Seeds from (run seed, round, client) and a purpose, nothing else, so that order and grouping never matter."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a device that infers with ONNX has no torch, and derives seeds
    import torch

_GLOBAL_STATE = threading.RLock()  # several nodes may share a process


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on their order."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a fresh generator seeded by `derive_seed(*parts)`."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(*parts))


def seed_global(device: torch.device, seed: int) -> None:
    """Seed the global state that dropout on `device` draws from.

    Not `torch.manual_seed`: while no GPU is in use, it stores a stack trace for later, which takes a millisecond.
    """
    import torch

    with _GLOBAL_STATE:
        torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


@contextmanager
def seeded(*parts: int | str) -> Iterator[None]:
    """Seed the CPU's global state inside, for torch's own initialisers, and restore it afterwards."""
    import torch

    # Not torch.manual_seed, which would also reseed the accelerators.
    with _GLOBAL_STATE, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))
        yield

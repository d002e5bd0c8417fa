"""How a simulation's workers share GPUs: a worker takes a part of one GPU, or several whole ones."""

import argparse
import math
import subprocess
import sys
from pathlib import Path

from common.errors import UserError

# one of them is there where torch could see a GPU: NVIDIA's driver, its Jetson boards', Windows' for Linux, AMD's
DRIVERS = tuple(map(Path, ("/dev/nvidiactl", "/dev/nvgpu", "/dev/nvhost-gpu", "/dev/dxg", "/dev/kfd")))
STEPS = 10_000  # Ray counts resources in such parts of one
COUNT = "import torch; print(torch.cuda.device_count())"


def gpu_share(text: str) -> float:
    """Return the value of `--gpus`; raises `argparse.ArgumentTypeError` for what Ray cannot reserve."""
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not (0 <= share <= 1 or (share.is_integer() and share > 0)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a share of a GPU: give a number from 0 to 1, or a whole number of GPUs"
        )
    return share


def visible() -> int:
    """Return how many GPUs torch sees on this machine; another process imports torch, and only if there is a driver."""
    if not any(driver.exists() for driver in DRIVERS):
        return 0
    done = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.stdout.strip().isdecimal() else 0


def even_share(workers: float, cards: float) -> float:
    """Return the part of a GPU that each worker gets where all workers share all cards; 0.0 without cards."""
    return math.floor(STEPS / max(1, math.ceil(workers / cards))) / STEPS if cards else 0.0


def room(cards: float, share: float) -> int:
    """Return how many workers fit on the cards, each with `share` of a GPU (> 0): a part lies on one card."""
    return int(cards) * int(1 / share) if share < 1 else int(cards // share)


def wanted_share(wanted: float | None, device: str) -> float | None:
    """Return the share of a GPU per worker that is asked for; 0.0 where clients compute on CPUs; None: an even one.

    Raises `UserError` if `wanted`, the value of `--gpus`, contradicts `device`, that of `clients.device`.
    """
    if (wanted and device == "cpu") or (wanted == 0 and device == "cuda"):
        raise UserError(f"--gpus {wanted:g} does not go with clients.device {device!r}: remove one of them")
    return 0.0 if device == "cpu" else wanted


def local_share(wanted: float | None, workers: int, device: str) -> tuple[float, int]:
    """Return the share of a GPU per worker of this machine, and how many workers there are with it.

    Args:
        wanted: the share asked for; None: an even share of the GPUs that torch sees.
        workers: at most.
        device: `clients.device`.

    Raises:
        UserError: the GPUs that are wanted are not here, or contradict `device`.
    """
    wanted = wanted_share(wanted, device)
    if wanted == 0:
        return 0.0, workers
    cards = visible()
    if wanted is None:
        if device == "cuda" and not cards:
            raise UserError("clients.device is 'cuda', but torch sees no GPU here: use 'auto' or 'cpu'")
        return even_share(workers, cards), workers
    if not (fit := room(cards, wanted)):
        raise UserError(f"--gpus {wanted:g} per worker, but torch sees {cards} GPUs here: give a smaller share, or 0")
    return wanted, min(workers, fit)

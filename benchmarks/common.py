"""What the benchmarks share: CPU time of a process tree, and results as JSON."""

import json
import os
import platform
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parent / "results"


class Meter:
    """Wall-clock and CPU seconds of this process and all its descendants since the last `lap`."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), tree_cpu()

    def lap(self) -> tuple[float, float]:
        """Return (wall, CPU) seconds since the last lap, and begin a new one."""
        wall, cpu = time.perf_counter(), tree_cpu()
        spent = wall - self.wall, cpu - self.cpu
        self.wall, self.cpu = wall, cpu
        return spent


def tree_cpu() -> float:
    """Return user and system seconds of this process and its descendants, of those that have ended as well."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:4])  # the last two are those of children that have ended
    return total


def about() -> dict[str, Any]:
    """Return versions, device and cores."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = {name: version(name) for name in ("flwr", "ray", "torch")}
    return {"device": device, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result with the machine's description to `benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**result, "about": about()}, indent=1) + "\n")
    return path

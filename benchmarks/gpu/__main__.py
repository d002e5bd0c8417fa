"""Check and measure everything that runs on CUDA: `python -m benchmarks.gpu`, planned for 20 minutes of one H200.

    methods, resumed, precision, together, memory     does a GPU compute what the CPU does, again and again?
    steps                                             a client's step in every way, beside a prediction
    darkdistill, cafedistill, distree                 what the papers' sizes take

Every stage runs in a process of its own, so that none takes another one down, and the result is saved after each. The
host needs neither Ray nor an index of packages: see benchmarks/gpu/README.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.common import save
from benchmarks.gpu import checks, papers, steps
from benchmarks.gpu.host import Host
from common.devices import keep_memory, pick_device, set_kernels

STAGES: dict[str, Callable[[Host], dict[str, Any]]] = {
    "methods": checks.methods,
    "steps": steps.measure,
    "darkdistill": papers.darkdistill,
    "resumed": checks.resumed,
    "together": checks.together,
    "memory": checks.memory,
    "cafedistill": papers.cafedistill,
    "distree": papers.distree,
    "precision": checks.precision,
}
PATIENCE = 400.0  # seconds for a stage


def main() -> int:
    """Run the stages; return 1 if a check failed or a stage broke."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)} (default: all)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--small", action="store_true", help="little work, to see that the stages run")
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)  # one stage, in this process
    options = parser.parse_args()
    if unknown := [name for name in options.stages if name not in STAGES]:
        parser.error(f"there is no stage {unknown[0]!r}: choose of {', '.join(STAGES)}")
    device = pick_device(options.device)
    if options.out:
        with tempfile.TemporaryDirectory() as folder:
            set_kernels()
            keep_memory()
            torch.set_num_threads(1)
            found = STAGES[options.stages[0]](Host(device, Path(folder), options.small))
        options.out.write_text(json.dumps(found))
        return 0
    return _all(options.stages or list(STAGES), options.device, options.small)


def _all(names: list[str], device: str, small: bool) -> int:
    card = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    result: dict[str, Any] = {"card": card, "small": small, "stages": {}}
    for name in names:
        result["stages"][name] = _apart(name, device, small)
        if not small:
            save(f"gpu_{card.replace(' ', '_').lower()}", result)
        Console(width=120).print(_table(name, result["stages"][name]))
    bad = [name for name, found in result["stages"].items() if found.get("passed") is False or "broke" in found]
    print(f"failed: {', '.join(bad)}" if bad else "all stages ran, and all checks passed")
    return 1 if bad else 0


def _apart(name: str, device: str, small: bool) -> dict[str, Any]:
    """Run a stage in a process of its own; what broke it is its result."""
    with tempfile.TemporaryDirectory() as folder:
        out, started = Path(folder) / "found.json", time.perf_counter()
        command = [sys.executable, "-m", "benchmarks.gpu", name, "--device", device, "--out", str(out)]
        try:
            done = subprocess.run(
                [*command, *(["--small"] if small else [])], stderr=subprocess.PIPE, text=True, timeout=PATIENCE,
                check=False,
            )  # fmt: skip
            problem = done.stderr[-2000:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            problem = f"no result after {PATIENCE:.0f} s"
        found: dict[str, Any] = {"broke": problem} if problem else json.loads(out.read_text())
        return {**found, "stage_seconds": time.perf_counter() - started}


def _table(name: str, found: dict[str, Any]) -> Table:
    table = Table("what", "value", title=name, title_justify="left")
    for key, value in _flat("", found):
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(prefix, value)]
    return [pair for key, item in value.items() for pair in _flat(f"{prefix} / {key}" if prefix else str(key), item)]


if __name__ == "__main__":
    sys.exit(main())

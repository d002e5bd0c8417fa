"""What an exit saves in time against what it saves in MACs: students on one thread.

Every exit is timed through `student.infer`, which stops there. Times are the thread's own CPU time, and exits take
turns. The share of the full time is compared with the share of the full MACs. Each unit alone shows where the two
differ: time per MAC, the cost of a pass that computes next to nothing (4 x 4 pixels), and which operations take the
time. All of it is measured twice: as glibc manages memory, which returns large tensors to the kernel and maps them
again page by page, and with memory kept. It takes about 2 minutes:

    KINETO_LOG_LEVEL=99 python -m benchmarks.exit_time
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import save
from common.devices import keep_memory
from common.networks import NetworkSpec, build, cost_table
from strategies.distree.model.students import Student
from strategies.distree.settings import DistrEESettings

SHAPE, FEATURES, TINY = (3, 32, 32), 64, 4
NETWORKS = {"WRN-16-1": ("wrn16", 1), "WRN-16-2": ("wrn16", 2), "resnet_slim": ("resnet_slim", 0)}
BATCHES = (1, 8, 32)
# Kind of operation -> words in its name. The rest is the exit and the cost of the calls.
OPERATIONS = {"convolution": ("conv",), "norm": ("batch_norm",), "relu": ("relu", "clamp"), "add": ("aten::add",)}
Call = Callable[[], Any]


def interleaved(calls: Mapping[Any, Call], seconds: float) -> dict[Any, dict[str, float]]:
    """Make the calls in turn for some seconds; return the least and the median microseconds of each."""
    times: dict[Any, list[float]] = {key: [] for key in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 5:
        for key, call in calls.items():
            started = time.thread_time()
            call()
            times[key].append(1e6 * (time.thread_time() - started))
    return {key: {"min": min(own), "median": statistics.median(own)} for key, own in times.items()}


def student(name: str, side: int = SHAPE[1]) -> Student:
    """Return a network as a student for images of a side, ready to infer."""
    backbone, width = NETWORKS[name]
    pooling = DistrEESettings().pooling
    spec = NetworkSpec(backbone, FEATURES, (SHAPE[0], side, side), width=width, pooling=pooling)
    return Student.of(build(spec, seed=1)).eval()


def exits(network: Student, batch: int, seconds: float) -> list[dict[str, float]]:
    """Return for every exit: microseconds per image, the shares of the full time and MACs, and how far they differ."""
    x, table, last = torch.rand(batch, *SHAPE), cost_table(network), len(network.exit_positions) - 1

    def stop_at(exit_: int) -> Call:
        return lambda: network.infer(x, lambda index, features: torch.full((len(features),), index == exit_))

    times = interleaved({exit_: stop_at(exit_) for exit_ in range(last + 1)}, seconds)
    found = []
    for exit_, own in times.items():
        macs = table.macs(exit_) / table.macs(last)
        row = {
            "macs": macs,
            "page_faults": page_faults(stop_at(exit_)),
            **{f"us_per_image_{how}": own[how] / batch for how in own},
        }
        for how in own:
            share = own[how] / times[last][how]
            row |= {f"time_{how}": share, f"points_{how}": 100 * (share - macs), f"relative_{how}": share / macs - 1}
        found.append(row)
    return found


@torch.no_grad()
def units(network: Student, small: Student, batch: int, seconds: float) -> list[dict[str, float]]:
    """Return for every unit, with the exit after it: time per MAC, the fixed part, the share of each operation.

    `small` is the same network for images of `TINY` pixels a side.
    """
    table, x, tiny = cost_table(network), torch.rand(batch, *SHAPE), torch.rand(1, SHAPE[0], TINY, TINY)
    calls: dict[Any, Call] = {}
    steps, sizes = [], []
    for index, unit in enumerate(network.units.values()):
        step, tiny_step = (
            _step(unit, one.head(index + 1) if index + 1 in one.exit_positions else None) for one in (network, small)
        )
        calls[index, "full"], calls[index, "tiny"] = _bound(step, x), _bound(tiny_step, tiny)
        steps.append(calls[index, "full"])
        x, tiny = unit(x), unit(tiny)
        sizes.append(x.nbytes)
    times = interleaved(calls, seconds)
    found = []
    for index, step in enumerate(steps):
        macs = table.units[index].macs + (table.exits[index + 1].macs if index + 1 in table.exits else 0)
        took, fixed = (times[index, size]["min"] for size in ("full", "tiny"))
        found.append({
            "unit": index + 1, "macs": macs, "us_per_image": took / batch, "ns_per_mac": 1000 * took / batch / macs,
            "fixed_us_per_batch": fixed, "fixed_share": fixed / took, "output_kib_per_batch": sizes[index] / 1024,
            "operations": operations(step),
        })  # fmt: skip
    return found


def page_faults(call: Call, repeats: int = 10) -> float:
    """Return how many pages the kernel maps per call."""
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(repeats):
        call()
    return (resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before) / repeats


def operations(call: Call, repeats: int = 7) -> dict[str, float]:
    """Return the share of each kind of operation in the quickest of several passes."""
    call()
    passes = []
    for _ in range(repeats):
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            call()
        passes.append({event.key: event.self_cpu_time_total for event in profiler.key_averages()})
    quickest = min(passes, key=lambda spent: sum(spent.values()))
    found = dict.fromkeys([*OPERATIONS, "rest"], 0.0)
    for key, spent in quickest.items():
        kind = next((kind for kind, words in OPERATIONS.items() if any(word in key for word in words)), "rest")
        found[kind] += spent / sum(quickest.values())
    return found


def _step(unit: nn.Module, head: Any) -> Callable[[Tensor], Any]:
    def step(x: Tensor) -> Any:
        x = unit(x)
        return x if head is None else torch.relu(head(head.pooled(x)))

    return step


def _bound(step: Callable[[Tensor], Any], x: Tensor) -> Call:
    return lambda: step(x)


def main() -> None:
    """Measure all networks and batch sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5.0, help="of a network at one batch size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"shape": SHAPE, "features": FEATURES, "seconds": options.seconds}
    for memory in ("as it is", "kept"):
        if memory == "kept":
            keep_memory()
        for name in NETWORKS:
            network, small = student(name), student(name, TINY)
            for batch in BATCHES:
                found = {
                    "exits": exits(network, batch, 0.7 * options.seconds),
                    "units": units(network, small, batch, 0.3 * options.seconds),
                }
                result.setdefault(f"memory {memory}", {}).setdefault(name, {})[f"batch {batch}"] = found
                _show(f"{name}, batch {batch}, memory {memory}", found)
    print(save("exit_time", result))


def _show(title: str, found: dict[str, Any]) -> None:
    print(title)
    for kind, rows, keys in (
        ("exit", found["exits"], ("macs", "time_min", "time_median")),
        ("unit", found["units"], ("ns_per_mac", "fixed_share")),
        ("share", [row["operations"] for row in found["units"]], (*OPERATIONS, "rest")),
    ):
        for key in keys:
            print(f"  {kind:5} {key:12}", " ".join(f"{row[key]:6.3f}" for row in rows), flush=True)


if __name__ == "__main__":
    main()

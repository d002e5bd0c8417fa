"""Figures of DistrEE: what an exit saves in time, and what it saves between hosts."""

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any

from benchmarks.tables.cells import Figures, Read, between, percent, table

HOSTED = ("k2 uniform", "k4 uniform")  # what was measured between hosts
MEMORY, NETWORK = "memory kept", "WRN-16-1"
LINKS = {
    "1 ms": "1 ms",
    "20 ms": "20 ms",
    "100 ms": "100 ms",
    "1 ms, 10 Mbit/s": "1 ms, 10 Mbit/s",
    "1 ms, one device 4 times as slow": "1 ms, one device 4 times slower",
}
SLOW = "1 ms, one device 4 times as slow"
WIDE, NARROW = (1, 2), (5, 6)  # units of 16 channels at 32x32, and of 64 channels at 8x8
UNCOUNTED = ("norm", "relu", "add")  # operations without MACs


def figures(read: Read) -> Figures:
    """Return every figure of the sections on the time of exits and on separate hosts."""
    return {"exit_time": exit_time(read), "network": network(read), **_time(read), **_hosts(read)}


def exit_time(read: Read) -> str:
    """Return the table of the share of the time that an exit takes, beside its share of the MACs."""
    batches = read("exit_time")[MEMORY][NETWORK]
    first = batches["batch 1"]
    full = sum(unit["macs"] for unit in first["units"])
    macs = [f"{percent(exit_['macs'], 0)} %" for exit_ in first["exits"][1:-1]]
    rows = [(f"{NETWORK}: MACs", *macs, f"{full / 1e6:.1f} M")]
    rows += [_time_row(batch, found["exits"]) for batch, found in batches.items()]
    return table(("", "exit 2", "3", "4", "5", "6", "last exit"), rows)


def network(read: Read) -> str:
    """Return the table of median milliseconds of a request, by link and operating point."""
    cases = read("distree_network")["cases"]
    points = ("last", "calibrated", "cheap")
    return table(
        (
            *("round trip", "2 students: last exit", "calibrated", "cheap"),
            *("4 students: last exit", "calibrated", "cheap"),
        ),
        (
            (title, *(f"{cases[case][name][point]['p50_ms']:.1f}" for name in HOSTED for point in points))
            for case, title in LINKS.items()
        ),
    )


def _time_row(batch: str, found: Sequence[dict[str, float]]) -> tuple[str, ...]:
    shares = (f"{percent(exit_['time_min'], 0)} %" for exit_ in found[1:-1])
    return batch, *shares, f"{found[-1]['us_per_image_min'] / 1000:.2f} ms"


def _time(read: Read) -> Figures:
    kept = read("exit_time")[MEMORY]
    first = kept[NETWORK]["batch 1"]["exits"]
    uncounted = [
        sum(unit["operations"][kind] for kind in UNCOUNTED)
        for batch in ("batch 8", "batch 32")
        for unit in (kept[NETWORK][batch]["units"][index] for index in WIDE)
    ]
    return {
        "stem_time": percent(first[0]["time_min"], 0),
        "stem_macs": percent(first[0]["macs"], 0),
        "exit_2": percent(first[1]["relative_min"], 0),
        "from_exit_3": _within(first[2:]),
        "wider": _within(kept["WRN-16-2"]["batch 1"]["exits"][1:]),
        "slim": _within(kept["resnet_slim"]["batch 1"]["exits"]),
        "dear_8": f"{_dearer(kept[NETWORK]['batch 8']['units']):.1f}",
        "dear_32": f"{_dearer(kept[NETWORK]['batch 32']['units']):.1f}",
        "uncounted": between(uncounted),
    }


def _within(exits: Sequence[dict[str, float]]) -> str:
    """Return the percentage within which the times of exits follow their MACs, rounded up."""
    furthest = max(abs(exit_["relative_min"]) for exit_ in exits)
    return str(Decimal(100 * furthest).to_integral_value(ROUND_CEILING))


def _dearer(units: Sequence[dict[str, Any]]) -> float:
    """Return how much longer a MAC takes in the wide units than in the narrow ones."""

    def per_mac(indices: Sequence[int]) -> float:
        chosen = [units[index] for index in indices]
        time: float = sum(unit["us_per_image"] for unit in chosen)
        return time / float(sum(unit["macs"] for unit in chosen))

    return per_mac(WIDE) / per_mac(NARROW)


def _hosts(read: Read) -> Figures:
    result, students = read("distree_network"), read("distree_cifar10")
    near = result["cases"]["1 ms"]["k2 uniform"]["last"]
    slowed = {name: result["online"][name]["slowed"] for name in HOSTED}
    cut, killed = result["gone"]["one device's link cut"], result["gone"]["one device killed"]
    alone = read("exit_time")[MEMORY][NETWORK]["batch 1"]["exits"][-1]
    return {
        "compute_ms": f"{near['compute_ms']:.0f}",
        "request_ms": f"{near['mean_ms']:.0f}",
        "alone_ms": f"{alone['us_per_image_min'] / 1000:.1f}",
        "student_macs": f"{students['k2 uniform']['full_macs'] / 2e6:.0f}",
        "saved_macs_2": percent(students["k2 uniform"]["policies"]["calibrated"]["saved"], 0),
        "saved_macs_4": percent(students["k4 uniform"]["policies"]["calibrated"]["saved"], 0),
        **{
            f"{point}_{where}": between(_saved(result["cases"], point, slow=slow))
            for point in ("calibrated", "cheap")
            for where, slow in (("slow", True), ("elsewhere", False))
        },
        "rungs": str(slowed["k2 uniform"]["rungs"]["2"]),
        "requests": str(slowed["k2 uniform"]["requests"]),
        "late_2": str(slowed["k2 uniform"]["late"]),
        "late_4": str(slowed["k4 uniform"]["late"]),
        "deadline_s": f"{result['deadline_s']:g}",
        "cut_next_s": f"{cut['first_ms']['k2 uniform']['calibrated'] / 1000:.1f}",
        "cut_then_ms_2": f"{cut['k2 uniform']['last']['p50_ms']:.0f}",
        "cut_then_ms_4": f"{cut['k4 uniform']['calibrated']['p50_ms']:.0f}",
        "back_s": f"{cut['seconds_until_back']:.0f}",
        "killed_s": f"{killed['first_ms']['k2 uniform']['last'] / 1000:.1f}",
    }


def _saved(cases: dict[str, Any], point: str, *, slow: bool) -> Iterator[float]:
    """Yield the shares of the median time that an operating point saves, per link and number of students."""
    for case, found in cases.items():
        if (case == SLOW) == slow:
            for name in HOSTED:
                yield 1 - found[name][point]["p50_ms"] / found[name]["last"]["p50_ms"]

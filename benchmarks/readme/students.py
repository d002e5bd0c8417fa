"""Tables of DistrEE: what students reach, what an exit saves in time, what it saves between hosts."""

from collections.abc import Sequence
from typing import Any

from benchmarks.readme.cells import Read, exits, percent, table

STUDENTS = {
    "k2 uniform": "two students",
    "k2": "two, middle exits doubled",
    "k4 uniform": "four students",
    "k4": "four, middle exits doubled",
}
HOSTED = ("k2 uniform", "k4 uniform")  # what was measured between hosts
POLICIES = {"difference": "feature difference", "neighbour": "neighbour similarity", "random": "random exits"}
MEMORY, NETWORK = "memory kept", "WRN-16-1"
LINKS = {
    "1 ms": "1 ms",
    "20 ms": "20 ms",
    "100 ms": "100 ms",
    "1 ms, 10 Mbit/s": "1 ms, 10 Mbit/s",
    "1 ms, one device 4 times as slow": "1 ms, one device 4 times slower",
}


def distree(read: Read) -> str:
    """Every exit, and the calibrated and the published thresholds, beside the paper."""
    result = read("distree_cifar10")
    paper = result["paper"]
    rows = [_students_row(title, result[name]) for name, title in STUDENTS.items()]
    published = f"{percent(paper['accuracy'], 0)}, {percent(paper['saved'])} % saved"
    rows.append(("the paper, 200 epochs", exits(paper["exits"], 0), "", "", published))
    return table(("", "exits 1 to 7", "calibrated for a point", "MACs saved", "published thresholds"), rows)


def _students_row(title: str, result: dict[str, Any]) -> Sequence[str]:
    calibrated, published = (result["policies"][name] for name in ("calibrated", "published"))
    return (
        title,
        exits(result["exits"]),
        percent(calibrated["accuracy"]),
        f"{percent(calibrated['saved'])} %",
        f"{percent(published['accuracy'])}, {percent(published['saved'])} % saved",
    )


def distree_policies(read: Read) -> str:
    """What each kind of policy reaches at the same cost, and what it saved of all MACs."""
    savings = read("distree_cifar10")["k2 uniform"]["at_saving"]
    return table(
        ("two students: accuracy (MACs saved)", *(f"{100 * float(saving):g} % wanted" for saving in savings)),
        ((title, *(_reached(at[name]) for at in savings.values())) for name, title in POLICIES.items()),
    )


def _reached(point: dict[str, float]) -> str:
    return f"{percent(point['accuracy'])} ({percent(point['saved'])} %)"


def exit_time(read: Read) -> str:
    """The share of the time that an exit takes, beside its share of the MACs."""
    batches = read("exit_time")[MEMORY][NETWORK]
    first = batches["batch 1"]
    full = sum(unit["macs"] for unit in first["units"])
    macs = [f"{percent(exit_['macs'], 0)} %" for exit_ in first["exits"][1:-1]]
    rows = [(f"{NETWORK}: MACs", *macs, f"{full / 1e6:.1f} M")]
    rows += [_time_row(batch, found["exits"]) for batch, found in batches.items()]
    return table(("", "exit 2", "3", "4", "5", "6", "last exit"), rows)


def _time_row(batch: str, found: Sequence[dict[str, float]]) -> tuple[str, ...]:
    shares = (f"{percent(exit_['time_min'], 0)} %" for exit_ in found[1:-1])
    return batch, *shares, f"{found[-1]['us_per_image_min'] / 1000:.2f} ms"


def distree_network(read: Read) -> str:
    """Median milliseconds of a request, by link and operating point."""
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

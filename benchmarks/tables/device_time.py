"""Figures of simulated device time beside measured one."""

from typing import Any

from benchmarks.tables.cells import Figures, Read, table

HEAD = (
    "", "depth", "probed GFLOPS", "computing, measured", "simulated from the probe", "sustained GFLOPS",
    "simulated from depth 4's", "link, measured",
)  # fmt: skip


def figures(read: Read) -> Figures:
    """Return every figure of the section on device time."""
    result = read("device_time")
    cases: dict[str, Any] = result["cases"]
    probed = [speed for case in cases.values() for speed in case["probed_gflops"]]
    sustained = [speed for case in cases.values() for speed in _sustained(case).values()]
    errors = [_calibrated(case) / _measured(case, 0) - 1 for case in cases.values()]
    return {
        "table": table(HEAD, [row for name, case in cases.items() for row in _rows(name, case)]),
        "rounds": str(result["rounds"]),
        "probed": f"{min(probed):.0f} to {max(probed):.0f}",
        "sustained": f"{min(sustained):.0f} to {max(sustained):.0f}",
        "off": f"{100 * min(map(abs, errors)):.0f} to {100 * max(map(abs, errors)):.0f} %",
        "link": f"{1000 * max(_links(cases)):.0f}",
        "load": f"{max(case['load'] for case in cases.values()):.0f}",
    }


def _links(cases: dict[str, Any]) -> list[float]:
    return [part["link"] for case in cases.values() for part in case["measured"]["by_part"].values()]


def _rows(name: str, case: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for place, (part, sustained) in enumerate(_sustained(case).items()):
        calibrated = f"{_calibrated(case):.2f} s" if place == 0 else ""
        rows.append((
            name if place == 0 else "", part, f"{case['probed_gflops'][place]:.1f}", f"{_measured(case, place):.2f} s",
            f"{_simulated(case, place):.2f} s", f"{sustained:.1f}", calibrated,
            f"{case['measured']['by_part'][part]['link']:.2f} s",
        ))  # fmt: skip
    return rows


def _sustained(case: dict[str, Any]) -> dict[str, float]:
    """Return, by depth, the GFLOPS that training has reached: the model's operations over the measured seconds."""
    return {
        part: _simulated(case, place) * case["probed_gflops"][place] / _measured(case, place)
        for place, part in enumerate(case["measured"]["by_part"])
    }


def _calibrated(case: dict[str, Any]) -> float:
    """Return the first node's seconds, simulated with the speed that the last one's training has reached."""
    return _simulated(case, 0) * case["probed_gflops"][0] / list(_sustained(case).values())[-1]


def _measured(case: dict[str, Any], place: int) -> float:
    return float(list(case["measured"]["by_part"].values())[place]["compute"])


def _simulated(case: dict[str, Any], place: int) -> float:
    return float(list(case["simulated"]["by_part"].values())[place]["compute"])

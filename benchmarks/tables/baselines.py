"""Figures of the baselines: what each gains over EEFL, and how long the devices take."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain, gain_between, percent, spread, table

STUDY = "baselines_cifar10"
REST = "baselines_rest"  # methods of `STUDY` that another machine ran, with its own EEFL
BASE = "eefl"
METHODS = {
    "eefl": "`eefl`",
    "published": "`darkdistill`, published step",
    "depthfl": "`depthfl`",
    "inclusivefl": "`inclusivefl`",
    "reefl": "`reefl`",
    "exclusivefl": "`exclusivefl`",
}
REST_METHODS = {"eefl": "`eefl`", "fedprox": "`fedprox`", "median": "`median`", "fedavg": "`fedavg`"}
LAST_ALONE = ("fedavg",)  # methods that train no other exit
HEADER = (
    "", "mean of exits", "gain over EEFL", "exits 1 to 4", "last exit's gain", "calibrated, share of MACs",
    "seconds on the devices",
)  # fmt: skip
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of the baselines' section."""
    depthfl, published = (study.cells(read(STUDY), method) for method in ("depthfl", "published"))
    return {
        "cifar10": _table(read(STUDY), METHODS),
        "rest": _table(read(REST), REST_METHODS),
        "depthfl_over_published": gain_between(study.interval(depthfl, published, study.mean_of_exits)),
        "seeds": str(len(study.cells(read(STUDY), BASE))),
        **{f"{method}_over": over_eefl(read, method) for method in REST_METHODS if method != BASE},
    }


def over_eefl(read: Read, method: str) -> str:
    """Return what a method gains over EEFL of the same machine, in the mean of exits or at its only one."""
    result = read(REST if method in REST_METHODS else STUDY)
    value = study.last_exit if method in LAST_ALONE else study.mean_of_exits
    return gain_between(study.interval(study.cells(result, method), study.cells(result, BASE), value))


def eefl(read: Read) -> str:
    """Return EEFL's mean exit accuracy in the setting of these gains."""
    return spread(study.over_seeds(study.cells(read(STUDY), BASE), study.mean_of_exits), 2)


def _table(result: Mapping[str, Any], methods: Mapping[str, str]) -> str:
    runs = {method: study.cells(result, method) for method in methods}
    return table(HEADER, (_row(title, method, runs) for method, title in methods.items()))


def _row(title: str, method: str, runs: Mapping[str, Runs]) -> Sequence[str]:
    own, alone = runs[method], method in LAST_ALONE

    def over(value: study.Value) -> str:
        return "" if method == BASE else gain(study.gain(own, runs[BASE], value), 2)

    return (
        title,
        "" if alone else spread(study.over_seeds(own, study.mean_of_exits), 2),
        "" if alone else over(study.mean_of_exits),
        f"- / - / - / {percent(study.exit_means(own)[-1])}" if alone else exits(study.exit_means(own)),
        over(study.last_exit),
        "" if alone else f"{percent(_mean(own, _calibrated))} at {percent(_mean(own, _share), 0)} %",
        f"{_mean(own, _device_seconds):.1f}",
    )


def _mean(runs: Runs, value: study.Value) -> float:
    return study.over_seeds(runs, value)[0]


def _calibrated(cell: study.Cell) -> float:
    return float(cell["accuracy"]["calibrated"]["accuracy"])


def _share(cell: study.Cell) -> float:
    return float(cell["accuracy"]["calibrated"]["mean_macs"] / cell["accuracy"]["exit_macs"][-1])


def _device_seconds(cell: study.Cell) -> float:
    return float(cell["device_seconds"])

"""Figures of the baselines: what each gains over EEFL, and how long the devices take."""

from collections.abc import Mapping

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain, percent, spread, table

STUDY = "baselines_cifar10"
METHODS = {
    "eefl": "`eefl`",
    "published": "`darkdistill`, published step",
    "depthfl": "`depthfl`",
    "inclusivefl": "`inclusivefl`",
    "reefl": "`reefl`",
    "exclusivefl": "`exclusivefl`",
}
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of the baselines' section."""
    result = read(STUDY)
    runs = {method: study.cells(result, method) for method in METHODS}
    return {
        "cifar10": table(
            (
                "",
                "mean of exits",
                "gain over EEFL",
                "exits 1 to 4",
                "calibrated, share of MACs",
                "seconds on the devices",
            ),
            (
                (
                    METHODS[method],
                    spread(study.over_seeds(own, study.mean_of_exits), 2),
                    "" if method == "eefl" else gain(study.gain(own, runs["eefl"], study.mean_of_exits), 2),
                    exits(study.exit_means(own)),
                    f"{percent(_mean(own, _calibrated))} at {percent(_mean(own, _share), 0)} %",
                    f"{_mean(own, _device_seconds):.1f}",
                )
                for method, own in runs.items()
            ),
        ),
        "seeds": str(len(runs["eefl"])),
    }


def over_eefl(read: Read, method: str) -> str:
    """Return what a method gains over EEFL."""
    result = read(STUDY)
    return gain(study.gain(study.cells(result, method), study.cells(result, "eefl"), study.mean_of_exits), 2)


def _mean(runs: Runs, value: study.Value) -> float:
    return study.over_seeds(runs, value)[0]


def _calibrated(cell: study.Cell) -> float:
    return float(cell["accuracy"]["calibrated"]["accuracy"])


def _share(cell: study.Cell) -> float:
    return float(cell["accuracy"]["calibrated"]["mean_macs"] / cell["accuracy"]["exit_macs"][-1])


def _device_seconds(cell: study.Cell) -> float:
    return float(cell["device_seconds"])

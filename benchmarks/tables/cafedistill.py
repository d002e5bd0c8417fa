"""Figures of CAFEDistill: personal networks on CIFAR-10 beside FedPer and local training."""

from collections.abc import Sequence
from typing import Any

from benchmarks.tables.cells import Figures, Read, exits, gain, percent, pick, spread, table

PERSONAL = {
    "cafedistill": "`cafedistill`, published lambda 1",
    "cafedistill light": "`cafedistill`, lambda 0.1",
    "fedper": "`fedper`",
    "local": "`local`",
}


def figures(read: Read) -> Figures:
    """Return every figure of CAFEDistill's section."""
    result = read("personal_cifar10")
    summary, tuning = result["summary"], read("personal_tuning")["runs"]
    mean = {variant: pick(summary, variant=variant)["mean"][0] for variant in (*PERSONAL, "own teacher")}
    (seed,) = (run["seed"] for run in result["runs"] if run["variant"] == "own teacher")
    header = ("", "mean of exits", "gain over FedPer", "exits 1 to 3", "spread over clients", "MACs saved, points lost")
    return {
        "personal": table(header, (_row(title, pick(summary, variant=v)) for v, title in PERSONAL.items())),
        "light_over_fedper": percent(mean["cafedistill light"] - mean["fedper"]),
        "light_over_local": percent(mean["cafedistill light"] - mean["local"]),
        "own_teacher": percent(mean["own teacher"]),
        "same_seed": percent(pick(result["runs"], variant="cafedistill", seed=seed)["mean"]),
        "fedper_rate_02": percent(pick(tuning, variant="fedper", overrides={"train.lr": 0.2})["mean"]),
        "fedper_rate_01": percent(pick(tuning, variant="fedper", overrides={})["mean"]),
    }


def over_fedper(read: Read, variant: str) -> str:
    """Return what a variant gains over FedPer."""
    return gain(pick(read("personal_cifar10")["summary"], variant=variant)["gain_over_fedper"], 2)


def mean_of_exits(read: Read, variant: str) -> str:
    """Return a variant's mean exit accuracy over clients."""
    return spread(pick(read("personal_cifar10")["summary"], variant=variant)["mean"], 2)


def _row(title: str, row: dict[str, Any]) -> Sequence[str]:
    saved, lost = row["saved_own_threshold"][0], row["lost_own_threshold"][0]
    return (
        title,
        spread(row["mean"], 2),
        "" if row["variant"] == "fedper" else gain(row["gain_over_fedper"], 2),
        exits(row["exits"]),
        percent(row["spread_over_clients"]),
        f"{percent(saved)} %, {percent(lost)}",
    )

"""Figures of CAFEDistill: personal networks on CIFAR-10 beside FedPer and local training."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain, percent, pick, spread, table

PERSONAL = {
    "cafedistill": "`cafedistill`, published lambda 1",
    "cafedistill light": "`cafedistill`, lambda 0.1",
    "fedper": "`fedper`",
    "local": "`local`",
}


def figures(read: Read) -> Figures:
    """Return every figure of CAFEDistill's section."""
    result, tuning = read("personal_cifar10"), read("personal_tuning")["runs"]
    runs = {variant: study.cells(result, variant) for variant in PERSONAL}
    mean = {variant: study.over_seeds(own, study.mean_of_exits)[0] for variant, own in runs.items()}
    ((seed, own_teacher),) = study.cells(read("personal_teacher"), "own teacher").items()
    header = ("", "mean of exits", "gain over FedPer", "exits 1 to 3", "spread over clients", "MACs saved, points lost")
    return {
        "personal": table(header, (_row(title, v, runs) for v, title in PERSONAL.items())),
        "light_over_fedper": percent(mean["cafedistill light"] - mean["fedper"]),
        "light_over_local": percent(mean["cafedistill light"] - mean["local"]),
        "own_teacher": percent(study.mean_of_exits(own_teacher)),
        "same_seed": percent(study.mean_of_exits(runs["cafedistill"][seed])),
        "fedper_rate_02": percent(pick(tuning, variant="fedper", overrides={"train.lr": 0.2})["mean"]),
        "fedper_rate_01": percent(pick(tuning, variant="fedper", overrides={})["mean"]),
    }


def over_fedper(read: Read, variant: str) -> str:
    """Return what a variant gains over FedPer."""
    result = read("personal_cifar10")
    return gain(study.gain(study.cells(result, variant), study.cells(result, "fedper"), study.mean_of_exits), 2)


def mean_of_exits(read: Read, variant: str) -> str:
    """Return a variant's mean exit accuracy over clients."""
    return spread(study.over_seeds(study.cells(read("personal_cifar10"), variant), study.mean_of_exits), 2)


def _row(title: str, variant: str, runs: Mapping[str, Mapping[int, study.Cell]]) -> Sequence[str]:
    own = runs[variant]
    tuned = [run["client_accuracy"]["tuned"] for run in own.values()]
    saved = statistics.fmean(one["saved"] for one in tuned)
    lost = statistics.fmean(one["full_accuracy"] - one["accuracy"] for one in tuned)
    return (
        title,
        spread(study.over_seeds(own, study.mean_of_exits), 2),
        "" if variant == "fedper" else gain(study.gain(own, runs["fedper"], study.mean_of_exits), 2),
        exits(study.exit_means(own)),
        percent(statistics.fmean(run["client_accuracy"]["mean_spread"] for run in own.values())),
        f"{percent(saved)} %, {percent(lost)}",
    )

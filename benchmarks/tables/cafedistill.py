"""Figures of CAFEDistill: personal networks on CIFAR-10 beside the other personal methods."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain, gain_between, percent, signed, spread, table
from strategies.callbacks.accuracy import above_majority

STUDY, VALIDATION, OLDER = "personal_small", "personal_validation", "personal_published"
FULL = "personal_cifar10"  # the same at twice the width, for twice the rounds
FULL_REST = "personal_cifar10_rest"  # others at that size, and FedPer anew: with channels last, so other last bits
REST = "personal_rest"  # methods of `STUDY` that another machine ran, with its own FedPer
FINETUNED = "personal_finetuned"  # a third machine's, likewise: these two had one seed in `REST`
FINETUNED_METHODS = ("fedbabu", "fedavg_ft")
NORM_VALIDATION = "personal_norm_validation"  # with GroupNorm
BATCHNORM_VALIDATION = "personal_batchnorm_validation"
FEATURES_TRIED = "personal_features_tried"  # normalised features in the distillation
EVALUATIONS = 5  # the last ones, whose mean counts
BASE = "fedper"
PERSONAL = {
    "cafedistill": "`cafedistill`",
    "published": "`cafedistill`, published weights",
    "fedper": "`fedper`",
    "local": "`local`",
    "fedrep": "`fedrep`",
    "ditto": "`ditto`",
}
OWN = ("cafedistill", "published")  # variants of the method itself
TUNED = {
    "fedper_rate_01": "fedper", "fedper_rate_02": "fedper, rate 0.2",
    "weight_0": "weight 0", "weight_01": "weight 0.1", "weight_03": "weight 0.3",
}  # fmt: skip
Runs = Mapping[int, study.Cell]  # by seed


def last_five(cell: study.Cell) -> float:
    """Return the mean accuracy over exits, clients and the last evaluations of a run."""
    return study.last_means(cell, EVALUATIONS)


def figures(read: Read) -> Figures:
    """Return every figure of CAFEDistill's section."""
    result, older, rest = read(STUDY), read(OLDER), _rest(read)
    tuning = read("personal_tuning")
    runs = {variant: study.cells(result, variant) for variant in PERSONAL if variant in result["variants"]}
    ((seed, own_teacher),) = study.cells(read("personal_teacher"), "own teacher").items()
    wide = {variant: study.cells(older, variant) for variant in older["variants"]}
    header = (
        "", "mean of exits, last evaluation", "mean of the last five", "gain over FedPer (95 %)", "exits 1 to 3",
        "over the majority class", "MACs saved, points over the last exit",
    )  # fmt: skip
    return {
        "personal": table(header, (_row(variant, runs) for variant in runs)),
        "validation": by_seed(read(VALIDATION)),
        "norm_validation": by_seed(read(NORM_VALIDATION)),
        "batchnorm_validation": by_seed(read(BATCHNORM_VALIDATION)),
        "batchnorm_ends": _ends(read(BATCHNORM_VALIDATION), "published", BASE),
        "features_tried": by_seed(read(FEATURES_TRIED)),
        "full": by_seed(read(FULL)),
        "full_over_fedper": full_over_fedper(read),
        "full_rest": by_seed(read(FULL_REST)),
        "over_fedper": over_fedper(read),
        "rest": by_seed(rest),
        "finetuned": by_seed(read(FINETUNED)),
        **{f"{variant}_over": over for variant, over in over_others(read).items()},
        **{f"{variant}_full_over": over for variant, over in over_base(read(FULL_REST)).items()},
        "rest_end": percent(study.mean_of_exits(study.cells(rest, BASE)[1]), 2),
        "first_seed": percent(last_five(runs[BASE][1]), 2),
        "first_seed_end": percent(study.mean_of_exits(runs[BASE][1]), 2),
        "local_seeds": _by_seed(runs["local"]),
        "seeds": str(len(runs["cafedistill"])),
        "majority": percent(statistics.fmean(run["client_accuracy"]["majority"] for run in runs[BASE].values())),
        "wide_published": gain(study.gain(wide["cafedistill"], wide[BASE], study.mean_of_exits), 2),
        "wide_local": gain(study.gain(wide["local"], wide[BASE], study.mean_of_exits), 2),
        "wide_light": gain(study.gain(wide["cafedistill light"], wide[BASE], study.mean_of_exits), 2),
        **{
            name: percent(study.over_seeds(study.cells(tuning, variant), last_five)[0], 2)
            for name, variant in TUNED.items()
        },
        "own_teacher": percent(study.mean_of_exits(own_teacher)),
        "same_seed": percent(study.mean_of_exits(wide["cafedistill"][seed])),
    }


def over_fedper(read: Read) -> str:
    """Return what CAFEDistill gains over FedPer."""
    return _between(read(STUDY))


def full_over_fedper(read: Read) -> str:
    """Return the same at twice the width, after twice the rounds."""
    return _between(read(FULL))


def _between(result: Mapping[str, Any]) -> str:
    own, base = (study.cells(result, variant) for variant in ("cafedistill", BASE))
    return gain_between(study.interval(own, base, last_five))


def baselines(read: Read) -> list[str]:
    """Return the other personal methods that were measured."""
    return [variant for variant in PERSONAL if variant not in OWN and variant in read(STUDY)["variants"]]


def accuracy(read: Read, variant: str) -> str:
    """Return a variant's mean exit accuracy over clients and the last evaluations."""
    return spread(study.over_seeds(study.cells(read(STUDY), variant), last_five), 2)


def _ends(result: Mapping[str, Any], *variants: str) -> str:
    """Return the mean of exits at each variant's last evaluation, of one seed."""
    return " and ".join(percent(study.mean_of_exits(run)) for v in variants for run in study.cells(result, v).values())


def _row(variant: str, runs: Mapping[str, Runs]) -> Sequence[str]:
    own = runs[variant]
    measured = [run["client_accuracy"] for run in own.values()]
    tuned = [one["tuned"] for one in measured]
    saved = statistics.fmean(one["saved"] for one in tuned)
    won = statistics.fmean(one["accuracy"] - one["full_accuracy"] for one in tuned)
    learned = all(above_majority(one) for one in measured)
    return (
        PERSONAL[variant],
        spread(study.over_seeds(own, study.mean_of_exits), 2),
        spread(study.over_seeds(own, last_five), 2),
        "" if variant == BASE else gain_between(study.interval(own, runs[BASE], last_five)),
        exits(study.exit_means(own)),
        over_majority(own),
        f"{percent(saved)} %, {signed(won)}" if learned else "-",
    )


def over_majority(runs: Runs) -> str:
    """Return how far a variant is above each client's most frequent class, and whether that could be chance."""
    measured = [run["client_accuracy"] for run in runs.values()]
    above = statistics.fmean(one["mean"] - one["majority"] for one in measured)
    learned = all(above_majority(one) for one in measured)
    return f"{signed(above)}{'' if learned else ', within its reach'}"


def over_others(read: Read) -> dict[str, str]:
    """Return what the personal methods that are not in `STUDY` gain over the FedPer beside them."""
    return over_base(_rest(read)) | over_base(read(FINETUNED))


def _rest(read: Read) -> dict[str, Any]:
    result = read(REST)
    kept = {name: settings for name, settings in result["variants"].items() if name not in FINETUNED_METHODS}
    return {**result, "variants": kept}


def over_base(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what a study's other methods gain over its FedPer."""
    base = study.cells(result, BASE)
    runs = {variant: study.cells(result, variant) for variant in result["variants"] if variant != BASE}
    return {variant: gain_between(study.interval(own, base, last_five)) for variant, own in runs.items()}


def by_seed(result: Mapping[str, Any]) -> str:
    """Return the table of a study whose variants have few seeds, and not the same ones."""
    runs = {variant: study.cells(result, variant) for variant in result["variants"]}
    header = (
        "", "seeds", "mean of the last five", "gain over FedPer", "exits 1 to 3", "over the majority class",
    )  # fmt: skip
    return table(header, (_row_by_seed(variant, runs) for variant in runs))


def _by_seed(runs: Runs) -> str:
    return " / ".join(percent(last_five(cell), 2) for cell in runs.values())


def _row_by_seed(variant: str, runs: Mapping[str, Runs]) -> Sequence[str]:
    own = runs[variant]
    gains = [last_five(cell) - last_five(runs[BASE][seed]) for seed, cell in own.items()]
    return (
        variant,
        ", ".join(map(str, own)),
        _by_seed(own),
        "" if variant == BASE else " / ".join(signed(one, 2) for one in gains),
        exits(study.exit_means(own)),
        over_majority(own),
    )

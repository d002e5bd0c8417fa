"""Figures of Hetero-SplitEE: split training beside its alternatives, and what its streams cost."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain_between, percent, signed, spread, table

SPLIT = {
    "sequential": "`sequential`, default",
    "averaging": "`averaging`, default",
    "sflv2": "split learning, SFLV2 (gradient returned), averaged as `sequential`",
    "sflv1": "split learning, SFLV1 (gradient returned), averaged as `averaging`",
    "sequential, published": "`sequential`, preset `splitee-published`",
    "averaging, published": "`averaging`, preset `splitee-published`",
    "standalone": "standalone: a whole network per client, own images only",
    "central": "central, exits at the same cuts",
}
VALIDATION = {
    "standalone": "standalone",
    "sequential, same_cut": '`sequential`, `client-sync="same_cut"`',
    "sequential, prefix": '**`sequential`, `client-sync="prefix"`**',
    "sflv2, same_cut": 'SFLV2, `client-sync="same_cut"`',
    "averaging, global, cut": '**`averaging`, `aggregate-scope="global"`**',
    "averaging, global, own": '`averaging`, `aggregate-scope="global"`, `statistics="own"`',
}
MORE = {
    "sequential": '`sequential`, `client-sync="none"`',
    "sequential, same_cut, own": '`sequential`, `client-sync="same_cut"`, `statistics="own"`',
    "sequential, prefix, shuffled turns": '`sequential`, `turns="shuffled"`',
    "sequential, prefix, server's rate 0.025": "`sequential`, `server-lr=0.025`, half of the devices'",
    "sequential, prefix, server's rate 0.1": "`sequential`, `server-lr=0.1`, twice the devices'",
    "sequential, prefix, prior": '`sequential`, `prior="own"`',
    "sequential, prefix, groups": '`sequential`, `network.norm="group"`',
    "sflv2, prefix": 'SFLV2, `client-sync="prefix"`',
    "averaging, shared": '`averaging`, `aggregate-scope="server"`, `statistics="shared"`',
    "averaging, cut": '`averaging`, `aggregate-scope="server"`, `statistics="cut"`',
    "averaging, own": '`averaging`, `aggregate-scope="server"`, `statistics="own"`',
    "averaging, global, own, server's rate 0.1": '`averaging`, `statistics="own"`, `server-lr=0.1`',
    "averaging, global, cut, prior": '`averaging`, `prior="own"`',
    "averaging, global, groups": '`averaging`, `network.norm="group"`',
    "standalone, groups": 'standalone, `network.norm="group"`',
}
SKEWED = {
    "standalone": "standalone",
    "sequential": '`sequential`, `prior="own"`',
    "averaging": '`averaging`, `prior="own"`',
}
SKEWED_VALIDATION = {
    "standalone": "standalone",
    "sequential, prefix": "`sequential`",
    "averaging, global, cut": "`averaging`",
    "averaging, global, own": '`averaging`, `statistics="own"`',
    "sequential, prefix, prior": '**`sequential`, `prior="own"`**',
    "averaging, global, cut, prior": '**`averaging`, `prior="own"`**',
}
SKEWED_TRIED = {
    "plain": "as it is",
    "statistics own": "each client's own running statistics",
    "statistics anew": "running statistics estimated anew from each client's images",
    "last trained": "layers as each client last trained them, of `sequential` the device's",
    "prior in answers": "class frequencies in answers alone",
    "prior": '**class frequencies in training and answers: `prior="own"`**',
    "prior, statistics own": "likewise, each client's own running statistics",
    "prior, statistics anew": "likewise, running statistics estimated anew",
    "own exits": "each client's own exits, on both sides (FedPer)",
    "own exits, statistics own": "likewise, each client's own running statistics",
    "own exits, statistics anew": "likewise, running statistics estimated anew",
}
RESNET = {"sequential": "`sequential`", "averaging": "`averaging`", "standalone": SPLIT["standalone"]}
STREAMS = {
    "slim ResNet, cut 1, fp32 / bf16": ("resnet_slim, cut 1, sequential, fp32", "resnet_slim, cut 1, sequential, bf16"),
    "slim ResNet, cut 3, fp32 / bf16": ("resnet_slim, cut 3, sequential, fp32", "resnet_slim, cut 3, sequential, bf16"),
    "ResNet-18, cut 3 / cut 7, fp32": ("resnet18, cut 3, sequential, fp32", "resnet18, cut 7, sequential, fp32"),
}
SPLIT_HEADER = (
    "", "device's exit", "server's exit", "gated by entropy, answered locally", "server's exit over standalone",
)  # fmt: skip
CUTS = ("2", "3", "4")
WORDS = {2: "two", 3: "three"}
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of Hetero-SplitEE's sections."""
    tested = {variant: study.cells(read("split_accuracy"), variant) for variant in SPLIT}
    chosen, codings = read("split_validation"), read("split_codings")
    skewed = {variant: study.cells(read("split_skewed"), variant) for variant in SKEWED}
    resnet = {variant: study.cells(read("split_resnet18"), variant) for variant in RESNET}
    tried_skewed = read("split_validation_skewed")

    def coding_loss(coding: str) -> str:
        plain = study.cells(codings, "sequential")
        mean, deviation = study.gain(study.cells(codings, coding), plain, study.last_exit)
        return f"{percent(-mean)} ± {percent(deviation)}"

    def over(variant: str, other: str) -> str:
        return gain_between(study.interval(tested[variant], tested[other], study.last_exit), 1)

    def validated(variant: str, other: str) -> str:
        runs, base = (study.cells(chosen, name) for name in (variant, other))
        return gain_between(study.interval(runs, base, study.last_exit), 1)

    def before(variant: str) -> str:
        return percent(study.last_exit(study.cells(read("split_validation_before"), variant)[11]))

    def by_cut(variant: str, exit_: int) -> str:
        return ", ".join(percent(_at_cut(tested[variant], cut, exit_)) for cut in CUTS)

    return {
        "split": table(
            SPLIT_HEADER,
            (_split_row(title, variant, tested) for variant, title in SPLIT.items()),
        ),
        "seeds": WORDS[len(read("split_accuracy")["seeds"])],
        "resnet": table(SPLIT_HEADER, (_split_row(title, name, resnet) for name, title in RESNET.items())),
        "resnet_sequential_over_averaging": gain_between(
            study.interval(resnet["sequential"], resnet["averaging"], study.last_exit), 1
        ),
        "validation": _validated(chosen, VALIDATION),
        "prefix_over_same_cut": validated("sequential, prefix", "sequential, same_cut"),
        "cut_over_own": validated("averaging, global, cut", "averaging, global, own"),
        "validated_averaging": validated("averaging, global, cut", "standalone"),
        "validated_sequential": validated("sequential, prefix", "standalone"),
        "before_sequential": before("sequential, prefix"),
        "before_averaging": before("averaging, global, cut"),
        "tried": _validated(read("split_validation_more"), MORE),
        "skewed": table(
            (*SPLIT_HEADER, "server's exit over the majority class"),
            ((*_split_row(title, name, skewed), _over_majority(skewed[name])) for name, title in SKEWED.items()),
        ),
        "skewed_majority": percent(_majority(skewed["standalone"])),
        "skewed_validation": _validated(tried_skewed, SKEWED_VALIDATION),
        "skewed_validation_majority": " and ".join(
            percent(_majority({seed: run})) for seed, run in study.cells(tried_skewed, "standalone").items()
        ),
        "skewed_tried": table(
            ("", "`sequential`", "`averaging`"),
            ((title, *_tried(read("split_skewed_tried"), name)) for name, title in SKEWED_TRIED.items()),
        ),
        "equal_sequential": _with_and_without(read, "sequential, prefix"),
        "equal_averaging": _with_and_without(read, "averaging, global, cut"),
        "skewed_tried_majority": percent(read("split_skewed_tried")["majority"]),
        **{
            f"skewed_{variant}_over_standalone": over_standalone(read, variant, "split_skewed")
            for variant in ("sequential", "averaging")
        },
        "sequential_over_sflv2": over("sequential", "sflv2"),
        "averaging_over_sflv1": over("averaging", "sflv1"),
        "averaging_over_sflv2": over("averaging", "sflv2"),
        "averaging_over_sequential": over("averaging", "sequential"),
        "averaging": _mean(tested["averaging"]),
        "sequential": _mean(tested["sequential"]),
        "averaging_over_standalone": over("averaging", "standalone"),
        "sequential_over_standalone": over("sequential", "standalone"),
        "published_sequential_over": over("sequential, published", "standalone"),
        "published_averaging_over": over("averaging, published", "standalone"),
        **{
            f"{side}_by_cut_{variant}": by_cut(variant, exit_)
            for variant in ("sequential", "averaging")
            for side, exit_ in (("device", 0), ("server", -1))
        },
        "bf16_loss": coding_loss("bf16"),
        "uint8_loss": coding_loss("uint8"),
        **_streams(read),
    }  # fmt: skip


def over_standalone(read: Read, variant: str, name: str = "split_accuracy") -> str:
    """Return how many points a variant's server gains over devices that train alone, by seed, with its interval."""
    result = read(name)
    return gain_between(
        study.interval(study.cells(result, variant), study.cells(result, "standalone"), study.last_exit), 1
    )


def server_exit(read: Read, variant: str, name: str = "split_accuracy") -> str:
    """Return a variant's accuracy at the server's exit."""
    return spread(study.over_seeds(study.cells(read(name), variant), study.last_exit))


def _validated(result: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return a table of a study's variants: the server's exit for each seed, and means over the seeds."""
    rows = []
    for variant, title in titles.items():
        if variant in result["variants"]:
            runs = study.cells(result, variant)
            server = (percent(study.last_exit(runs[seed])) if seed in runs else "" for seed in result["seeds"])
            device = study.exit_means(runs)[0] if _has_exit(variant) else None
            gated = percent(_tuned(runs, _accuracy)) if _has_exit(variant) else ""
            rows.append((title, *server, _mean(runs), "" if device is None else percent(device), gated))
    seeds = [f"server's exit, seed {seed}" for seed in result["seeds"]]
    one = len(seeds) == 1
    header = ("", *seeds, "mean", "device's exit", "gated")
    kept = [index for index in range(len(header)) if not one or header[index] != "mean"]
    return table([header[index] for index in kept], ([row[index] for index in kept] for row in rows))


def _tried(result: Mapping[str, Any], variant: str) -> list[str]:
    """Return each mode's exits and gated answer, empty where a mode was not measured."""
    found = {row["mode"]: row for row in result["rows"] if row["variant"] == variant}
    return [
        exits(found[mode][key] for key in ("device", "server", "gated")) if mode in found else ""
        for mode in ("sequential", "averaging")
    ]


def _with_and_without(read: Read, variant: str) -> str:
    """Return the server's exit in equal shares, with clients' class frequencies and, by the same seed, without."""
    ((seed, own),) = study.cells(read("split_validation_more"), f"{variant}, prior").items()
    plain = study.cells(read("split_validation_before"), variant)[seed]
    return f"{percent(study.last_exit(own))} with it and {percent(study.last_exit(plain))} without"


def _majority(runs: Runs) -> float:
    """Return the accuracy of always answering a client's most frequent class."""
    return statistics.fmean(run["client_accuracy"]["majority"] for run in runs.values())


def _over_majority(runs: Runs) -> str:
    above = study.over_seeds(runs, study.last_exit)[0] - _majority(runs)
    return signed(above)


def _mean(runs: Runs) -> str:
    return percent(study.over_seeds(runs, study.last_exit)[0])


def _has_exit(variant: str) -> bool:
    """Return whether devices train an exit of their own before the server's; with returned gradients they do not."""
    return not variant.startswith(("sflv", "standalone"))


def _at_cut(runs: Runs, cut: str, exit_: int) -> float:
    """Return an exit's mean accuracy over the clients of a cut."""
    return statistics.fmean(run["client_accuracy"]["by_part"][cut]["exits"][exit_] for run in runs.values())


def _split_row(title: str, variant: str, tested: Mapping[str, Runs]) -> Sequence[str]:
    runs = tested[variant]
    *early, _ = study.exit_means(runs)
    leaves = bool(early) and _has_exit(variant)
    first = spread(study.over_seeds(runs, lambda run: float(study.measured(run)["exits"][0])))
    device = first if len(early) == 1 else exits(early)
    alone = study.interval(runs, tested["standalone"], study.last_exit)
    return (
        title,
        device if leaves else "no exit" if early else "",
        spread(study.over_seeds(runs, study.last_exit)),
        f"{percent(_tuned(runs, _accuracy))}, {percent(_tuned(runs, _answered_here), 0)} %" if leaves else "",
        "" if variant == "standalone" else gain_between(alone, 1),
    )


def _tuned(runs: Runs, value: Callable[[Mapping[str, Any]], float]) -> float:
    return statistics.fmean(value(run["client_accuracy"]["tuned"]) for run in runs.values())


def _accuracy(tuned: Mapping[str, Any]) -> float:
    return float(tuned["accuracy"])


def _answered_here(tuned: Mapping[str, Any]) -> float:
    """Return the share of samples that leave at the first exit, which is the device's."""
    return float(tuned["exit_histogram"][0] / sum(tuned["exit_histogram"]))


def _streams(read: Read) -> Figures:
    result = read("split")

    def both(cases: tuple[str, str], key: str) -> str:
        return " / ".join(f"{result['speed'][case]['2 devices, TLS'][key]:.2f}" for case in cases)

    held = {mode: {row["clients"]: row["models"] for row in rows} for mode, rows in result["memory_mib"].items()}
    return {
        "streams": table(
            ("", "per CPU-second", "wall-clock"),
            ((title, both(cases, "cpu_speed"), both(cases, "speed")) for title, cases in STREAMS.items()),
        ),
        "sample_kib": f"{result['bytes_per_sample']['resnet18, cut 3']['fp32'] / 1024:.0f}",
        "held_sequential": f"{max(held['sequential'].values()):.1f}",
        "held_averaging_2": f"{held['averaging'][2]:.0f}",
        "held_averaging_64": f"{held['averaging'][64]:.0f}",
    }

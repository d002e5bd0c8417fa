"""Figures of Hetero-SplitEE: split training beside its alternatives, and what its streams cost."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain, percent, spread, table

SPLIT = {
    "sequential": "`sequential` (six seeds)",
    "sequential, by cut": "`sequential`, statistics by cut (same weights)",
    "averaging": "`averaging`",
    "averaging, global": '`averaging`, `aggregate-scope="global"`',
    "averaging, prefix": '`averaging`, `client-sync="prefix"`',
    "sequential, prefix": '`sequential`, `client-sync="prefix"`',
    "sflv2": "split learning, SFLV2 (gradient returned)",
    "sflv1": "split learning, SFLV1",
    "sflv2, all at 3": "split learning, SFLV2, all devices at cut 3",
    "standalone": "standalone: a whole network per client, own images only",
    "central": "central, exits at the same cuts",
}
NO_EXIT = ("sflv2", "sflv1", "sflv2, all at 3")  # devices that receive gradients do not train their exits
STREAMS = {
    "slim ResNet, cut 1, fp32 / bf16": ("resnet_slim, cut 1, sequential, fp32", "resnet_slim, cut 1, sequential, bf16"),
    "slim ResNet, cut 3, fp32 / bf16": ("resnet_slim, cut 3, sequential, fp32", "resnet_slim, cut 3, sequential, bf16"),
    "ResNet-18, cut 3 / cut 7, fp32": ("resnet18, cut 3, sequential, fp32", "resnet18, cut 7, sequential, fp32"),
}
CUTS = ("2", "3", "4")
SIX = ("sequential", "sequential, by cut", "bf16", "uint8")  # variants with six seeds
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of Hetero-SplitEE's sections."""
    header = ("", "device's exit", "server's exit", "gated by entropy, answered locally")
    all_ = {variant: _runs(read, variant) for variant in SPLIT}
    base, long = all_["sequential"], read("split_accuracy_long")

    def coding_loss(coding: str) -> str:
        mean, deviation = study.gain(_runs(read, coding), base, study.last_exit)
        return f"{percent(-mean)} ± {percent(deviation)}"

    def long_exit(variant: str) -> str:
        return percent(study.over_seeds(study.cells(long, variant), study.last_exit)[0])

    def long_exits(variant: str) -> str:
        return ", ".join(percent(_at_cut(study.cells(long, variant), cut, -1)) for cut in CUTS)

    return {
        "split": table(
            (*header, "server's exit against sequential"),
            (_split_row(title, variant, all_[variant], base) for variant, title in SPLIT.items()),
        ),
        "over_standalone": over_standalone(read),
        "no_gradient": percent(study.gain(all_["sflv2"], base, study.last_exit)[0]),
        **{
            name: percent(study.over_seeds(_runs(read, variant), study.last_exit)[0])
            for name, variant in {
                "averaging": "averaging",
                "standalone": "standalone",
                "averaging_never": "averaging, never",
                "averaging_global": "averaging, global",
            }.items()
        },
        **{
            f"long_{name}": long_exit(variant)
            for name, variant in {
                "averaging": "averaging",
                "averaging_global": "averaging, global",
                "standalone": "standalone",
                "sequential": "sequential",
                "by_cut": "sequential, by cut",
                "prefix": "sequential, prefix",
                "prefix_by_cut": "sequential, prefix, by cut",
            }.items()
        },
        "long_sequential_cuts": long_exits("sequential"),
        "long_by_cut_cuts": long_exits("sequential, by cut"),
        "device_by_cut": ", ".join(percent(_at_cut(base, cut, 0)) for cut in CUTS),
        "server_by_cut": ", ".join(percent(_at_cut(base, cut, -1)) for cut in CUTS),
        "bf16_loss": coding_loss("bf16"),
        "uint8_loss": coding_loss("uint8"),
        **_streams(read),
    }


def over_standalone(read: Read) -> str:
    """Return how many points sequential training gains over devices that train alone, by seed."""
    return percent(-study.gain(_runs(read, "standalone"), _runs(read, "sequential"), study.last_exit)[0])


def server_exit(read: Read, variant: str) -> str:
    """Return a variant's accuracy at the server's exit."""
    return spread(study.over_seeds(_runs(read, variant), study.last_exit))


def _runs(read: Read, variant: str) -> Runs:
    """Return a variant's runs, of six seeds where there are as many."""
    return study.cells(read("split_codings" if variant in SIX else "split_accuracy"), variant)


def _at_cut(runs: Runs, cut: str, exit_: int) -> float:
    """Return an exit's mean accuracy over the clients of a cut."""
    return statistics.fmean(run["client_accuracy"]["by_part"][cut]["exits"][exit_] for run in runs.values())


def _split_row(title: str, variant: str, runs: Runs, base: Runs) -> Sequence[str]:
    *early, _ = study.exit_means(runs)
    leaves = bool(early) and variant not in NO_EXIT
    first = spread(study.over_seeds(runs, lambda run: float(study.measured(run)["exits"][0])))
    device = first if len(early) == 1 else exits(early)
    return (
        title,
        "no exit" if variant in NO_EXIT else device,
        spread(study.over_seeds(runs, study.last_exit)),
        f"{percent(_tuned(runs, _accuracy))}, {percent(_tuned(runs, _answered_here), 0)} %" if leaves else "",
        "" if variant == "sequential" else gain(study.gain(runs, base, study.last_exit)),
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

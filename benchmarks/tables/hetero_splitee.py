"""Figures of Hetero-SplitEE: split training beside its alternatives, and what its streams cost."""

from collections.abc import Sequence
from typing import Any

from benchmarks.tables.cells import Figures, Read, exits, gain, percent, pick, spread, table

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


def figures(read: Read) -> Figures:
    """Return every figure of Hetero-SplitEE's sections."""
    summary, long = read("split_accuracy")["summary"], read("split_accuracy_long")["summary"]
    header = ("", "device's exit", "server's exit", "gated by entropy, answered locally")

    def coding_loss(coding: str) -> str:
        mean, deviation = pick(summary, variant=coding, cut="all")["gain_over_sequential"]
        return f"{percent(-mean)} ± {percent(deviation)}"

    def server_exits(variant: str) -> str:
        return ", ".join(percent(last_exit(pick(long, variant=variant, cut=cut))) for cut in CUTS)

    return {
        "split": table(
            (*header, "server's exit against sequential"),
            (_split_row(title, pick(summary, variant=v, cut="all")) for v, title in SPLIT.items()),
        ),
        "over_standalone": over_standalone(read),
        "no_gradient": percent(pick(summary, variant="sflv2", cut="all")["gain_over_sequential"][0]),
        **{
            name: percent(last_exit(pick(summary, variant=variant, cut="all")))
            for name, variant in {
                "averaging": "averaging",
                "standalone": "standalone",
                "averaging_never": "averaging, never",
                "averaging_global": "averaging, global",
            }.items()
        },
        **{
            f"long_{name}": percent(last_exit(pick(long, variant=variant, cut="all")))
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
        "long_sequential_cuts": server_exits("sequential"),
        "long_by_cut_cuts": server_exits("sequential, by cut"),
        "device_by_cut": ", ".join(
            percent(pick(summary, variant="sequential", cut=cut)["exits"][0][0]) for cut in CUTS
        ),
        "server_by_cut": ", ".join(percent(last_exit(pick(summary, variant="sequential", cut=cut))) for cut in CUTS),
        "bf16_loss": coding_loss("bf16"),
        "uint8_loss": coding_loss("uint8"),
        **_streams(read),
    }


def last_exit(row: dict[str, Any]) -> float:
    """Return the mean accuracy at the last exit, which is the server's where the network is split."""
    mean: float = row["exits"][-1][0]
    return mean


def over_standalone(read: Read) -> str:
    """Return how many points sequential training gains over devices that train alone, by seed."""
    return percent(-pick(read("split_accuracy")["summary"], variant="standalone", cut="all")["gain_over_sequential"][0])


def server_exit(read: Read, variant: str) -> str:
    """Return a variant's accuracy at the server's exit."""
    return spread(pick(read("split_accuracy")["summary"], variant=variant, cut="all")["exits"][-1])


def _split_row(title: str, row: dict[str, Any]) -> Sequence[str]:
    *early, last = row["exits"]
    leaves = bool(early) and row["variant"] not in NO_EXIT
    device = spread(early[0]) if len(early) == 1 else exits(mean for mean, _ in early)
    return (
        title,
        "no exit" if row["variant"] in NO_EXIT else device,
        spread(last),
        f"{percent(row['gated'][0])}, {percent(row['local'][0], 0)} %" if leaves else "",
        "" if row["variant"] == "sequential" else gain(row["gain_over_sequential"]),
    )


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

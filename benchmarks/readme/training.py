"""Tables of the methods that train: DarkDistill and its baselines, CAFEDistill, Hetero-SplitEE."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.readme.cells import Read, exits, gain, percent, pick, spread, table

DIGITS = {
    "eefl": "`eefl`",
    "darkdistill": "`darkdistill`",
    "tenfold": "the same, relational losses tenfold",
    "unconditional": "the same, no difficulty condition",
    "learned": "the same, learned matcher",
    "sketch": 'the same, `difficulty.upload="sketch"`',
    "sketch-epsilon-1": "the same, sketch with epsilon 1",
    "parallel": '`darkdistill.variant="parallel"`',
    "depthfl": "`depthfl`",
    "exclusivefl": "`exclusivefl`",
}
PERSONAL = {
    "cafedistill": "`cafedistill`, published lambda 1",
    "cafedistill light": "`cafedistill`, lambda 0.1",
    "fedper": "`fedper`",
    "local": "`local`",
}
SPLIT = {
    "sequential": "`sequential` (six seeds)",
    "sequential, by cut": "`sequential`, statistics by cut (same weights)",
    "averaging": "`averaging`",
    "averaging, global": '`averaging`, `aggregate-scope="global"`',
    "averaging, prefix": '`averaging`, `client-sync="prefix"`',
    "sequential, prefix": '`sequential`, `client-sync="prefix"`',
    "sflv2": "split learning, SFLV2 (gradient returned)",
    "sflv1": "split learning, SFLV1",
    "sflv2, all at 3": "split learning, SFLV2, everybody at cut 3",
    "standalone": "standalone: a whole network per client, own images only",
    "central": "central, exits at the same cuts",
}
NO_EXIT = ("sflv2", "sflv1", "sflv2, all at 3")
"""Devices that are sent gradients do not train their exits."""


def accuracy_cifar10(read: Read) -> str:
    """DarkDistill beside EEFL."""
    summary = read("accuracy_cifar10")["summary"]
    wanted = [(alpha, variant) for alpha in (1000.0, 0.1) for variant in ("eefl", "darkdistill")]
    rows = {f"`{v}`, alpha {alpha:g}": pick(summary, alpha=alpha, variant=v) for alpha, v in wanted}
    return _over_eefl(rows)


def accuracy_digits(read: Read) -> str:
    """DarkDistill's variants and baselines."""
    summary = read("accuracy_digits")["summary"]
    return _over_eefl({title: pick(summary, variant=variant) for variant, title in DIGITS.items()})


def _over_eefl(rows: Mapping[str, dict[str, Any]]) -> str:
    return table(
        ("", "mean of exits", "gain over EEFL", "exits 1 to 4"),
        (
            (
                title,
                spread((row["mean"], row["deviation"]), 2),
                "" if row["variant"] == "eefl" else gain((row["gain_over_eefl"], row["gain_deviation"]), 2),
                exits(row["exits"]),
            )
            for title, row in rows.items()
        ),
    )


def personal(read: Read) -> str:
    """CAFEDistill beside FedPer and local training; exits leave by each client's own threshold."""
    summary = read("personal_cifar10")["summary"]
    header = ("", "mean of exits", "gain over FedPer", "exits 1 to 3", "spread over clients", "MACs saved, points lost")
    return table(header, (_personal_row(title, pick(summary, variant=v)) for v, title in PERSONAL.items()))


def _personal_row(title: str, row: dict[str, Any]) -> Sequence[str]:
    saved, lost = row["saved_own_threshold"][0], row["lost_own_threshold"][0]
    return (
        title,
        spread(row["mean"], 2),
        "" if row["variant"] == "fedper" else gain(row["gain_over_fedper"], 2),
        exits(row["exits"]),
        percent(row["spread_over_clients"]),
        f"{percent(saved)} %, {percent(lost)}",
    )


def split(read: Read) -> str:
    """Hetero-SplitEE beside split learning, devices on their own and one network on all data."""
    summary = read("split_accuracy")["summary"]
    header = ("", "device's exit", "server's exit", "gated by entropy, answered locally")
    return table(
        (*header, "server's exit against sequential"),
        (_split_row(title, pick(summary, variant=v, cut="all")) for v, title in SPLIT.items()),
    )


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

"""Figures of DarkDistill: CIFAR-10 and digits beside its baselines, and what the server's step costs."""

from collections.abc import Mapping
from typing import Any

from benchmarks.tables.cells import Figures, Read, exits, gain, percent, pick, spread, table

IID, SKEWED = 1000.0, 0.1  # the two alphas of the CIFAR-10 runs
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


def figures(read: Read) -> Figures:
    """Return every figure of DarkDistill's section."""
    digits = read("accuracy_digits")
    parallel = [run["mean"] for run in digits["runs"] if run["variant"] == "parallel"]
    return {
        "cifar10": cifar10(read),
        "digits": _over_eefl({title: pick(digits["summary"], variant=variant) for variant, title in DIGITS.items()}),
        "unconditional": digits_gain(read, "unconditional"),
        "parallel_worst": percent(min(parallel)),
        **_last_round(read),
        **_server_step(read),
    }


def cifar10(read: Read) -> str:
    """Return the table of DarkDistill beside EEFL."""
    summary = read("accuracy_cifar10")["summary"]
    wanted = [(alpha, variant) for alpha in (IID, SKEWED) for variant in ("eefl", "darkdistill")]
    return _over_eefl({f"`{v}`, alpha {alpha:g}": pick(summary, alpha=alpha, variant=v) for alpha, v in wanted})


def cifar10_mean(read: Read, variant: str) -> str:
    """Return a variant's mean exit accuracy with IID data."""
    row = pick(read("accuracy_cifar10")["summary"], alpha=IID, variant=variant)
    return spread((row["mean"], row["deviation"]), 2)


def cifar10_gain(read: Read, variant: str) -> str:
    """Return what a variant gains over EEFL with IID data."""
    return _gain(pick(read("accuracy_cifar10")["summary"], alpha=IID, variant=variant))


def digits_gain(read: Read, variant: str) -> str:
    """Return what a variant gains over EEFL on skewed digits."""
    return _gain(pick(read("accuracy_digits")["summary"], variant=variant))


def _gain(row: dict[str, Any]) -> str:
    return gain((row["gain_over_eefl"], row["gain_deviation"]), 2)


def _over_eefl(rows: Mapping[str, dict[str, Any]]) -> str:
    return table(
        ("", "mean of exits", "gain over EEFL", "exits 1 to 4"),
        (
            (
                title,
                spread((row["mean"], row["deviation"]), 2),
                "" if row["variant"] == "eefl" else _gain(row),
                exits(row["exits"]),
            )
            for title, row in rows.items()
        ),
    )


def _last_round(read: Read) -> Figures:
    """Return what the generators and the distillation did in the last round, with IID data."""
    runs = read("accuracy_cifar10")["runs"]
    terms = [run["terms"] for run in runs if (run["variant"], run["alpha"]) == ("darkdistill", IID)]
    ranks = [value for own in terms for key, value in own.items() if key.endswith("spearman") and "generator" in key]
    losses = [own["distillation"] for own in terms]
    return {
        "spearman": f"{min(ranks):.2f} to {max(ranks):.2f}",
        "distillation_loss": f"{min(losses):.2f} to {max(losses):.2f}",
    }


def _server_step(read: Read) -> Figures:
    result = read("distillation_cpu")
    seconds = {name: result[name]["round_seconds"] for name in ("demo", "cifar10", "paper")}
    return {
        "seconds_demo": f"{seconds['demo']:.2f}",
        "seconds_cifar10": f"{seconds['cifar10']:.1f}",
        "seconds_paper": f"{seconds['paper']:.0f}",
        "matrix_products": percent(result["paper"]["matrix_product_share"], 0),
    }

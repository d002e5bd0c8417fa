"""Figures of DarkDistill: CIFAR-10 and digits beside its baselines, and what the server's step costs."""

from collections.abc import Mapping

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, percent, spread, table
from benchmarks.tables.cells import gain as gain_text

IID, SKEWED = 1000.0, 0.1  # the two alphas of the CIFAR-10 runs
DIGITS = {
    "eefl": "`eefl`",
    "darkdistill": "`darkdistill`",
    "tenfold": "the same, relational losses tenfold",
    "unconditional": "the same, no difficulty condition",
    "learned": "the same, learned matcher",
    "sketch": 'the same, `difficulty.upload="sketch"`',
    "sketch, epsilon 1": "the same, sketch with epsilon 1",
    "parallel": '`darkdistill.variant="parallel"`',
    "depthfl": "`depthfl`",
    "inclusivefl": "`inclusivefl`",
    "reefl": "`reefl`, learning rate 0.01",
    "exclusivefl": "`exclusivefl`",
}
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of DarkDistill's section."""
    digits = read("accuracy_digits")
    eefl = study.cells(digits, "eefl")
    return {
        "cifar10": cifar10(read),
        "digits": _over_eefl({title: (study.cells(digits, variant), eefl) for variant, title in DIGITS.items()}),
        "unconditional": digits_gain(read, "unconditional"),
        "parallel_worst": percent(min(map(study.mean_of_exits, study.cells(digits, "parallel").values()))),
        **_last_round(read),
        **_server_step(read),
    }


def cifar10(read: Read) -> str:
    """Return the table of DarkDistill beside EEFL."""
    result, rows = read("accuracy_cifar10"), {}
    for alpha in (IID, SKEWED):
        eefl = study.cells(result, "eefl", alpha=alpha)
        for variant in ("eefl", "darkdistill"):
            rows[f"`{variant}`, alpha {alpha:g}"] = study.cells(result, variant, alpha=alpha), eefl
    return _over_eefl(rows)


def cifar10_mean(read: Read, variant: str) -> str:
    """Return a variant's mean exit accuracy with IID data."""
    return spread(study.over_seeds(study.cells(read("accuracy_cifar10"), variant, alpha=IID), study.mean_of_exits), 2)


def cifar10_gain(read: Read, variant: str) -> str:
    """Return what a variant gains over EEFL with IID data."""
    result = read("accuracy_cifar10")
    return _gain(study.cells(result, variant, alpha=IID), study.cells(result, "eefl", alpha=IID))


def digits_gain(read: Read, variant: str) -> str:
    """Return what a variant gains over EEFL on skewed digits."""
    digits = read("accuracy_digits")
    return _gain(study.cells(digits, variant), study.cells(digits, "eefl"))


def _gain(runs: Runs, base: Runs) -> str:
    return gain_text(study.gain(runs, base, study.mean_of_exits), 2)


def _over_eefl(rows: Mapping[str, tuple[Runs, Runs]]) -> str:
    """Return a table of runs, each with those of EEFL."""
    return table(
        ("", "mean of exits", "gain over EEFL", "exits 1 to 4"),
        (
            (
                title,
                spread(study.over_seeds(runs, study.mean_of_exits), 2),
                "" if runs == base else _gain(runs, base),
                exits(study.exit_means(runs)),
            )
            for title, (runs, base) in rows.items()
        ),
    )


def _last_round(read: Read) -> Figures:
    """Return what the generators and the distillation did in the last round, with IID data."""
    runs = study.cells(read("accuracy_cifar10"), "darkdistill", alpha=IID)
    terms = [run["terms"] for run in runs.values()]
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

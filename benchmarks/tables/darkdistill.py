"""Figures of DarkDistill: beside its baselines and its upper bound, and what the server's step does and costs."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, exits, gain_between, limits, percent, spread, table
from benchmarks.tables.cells import gain as gain_text

IID, SKEWED = 1000.0, 0.1  # the two alphas of the CIFAR-10 runs
DECAY = "`eefl`, decay of the published step"
REAL = '`darkdistill.source="validation"`'
DIGITS = {
    "eefl": "`eefl`",
    "eefl, decay": DECAY,
    "darkdistill": "`darkdistill`",
    "real images": REAL,
    "parallel": '`darkdistill.variant="parallel"`',
    "published": "published step",
    "published, tenfold": "published, relational losses tenfold",
    "published, unconditional": "published, no difficulty condition",
    "published, learned": "published, learned matcher",
    "published, sketch": 'published, `difficulty.upload="sketch"`',
    "depthfl": "`depthfl`",
    "inclusivefl": "`inclusivefl`",
    "reefl": "`reefl`, learning rate 0.01",
    "exclusivefl": "`exclusivefl`",
}
SKETCH = {
    "eefl": "`eefl`",
    "published, sketch": DIGITS["published, sketch"],
    "published, sketch, epsilon 1": "the same with epsilon 1",
}
BOUND = {
    "eefl": "`eefl`",
    "eefl, decay": DECAY,
    "darkdistill": "`darkdistill`",
    "published": "published step",
    "real images": REAL,
    "real images, half rate": "the same at half the rate",
}
TOKENS = {"published": "as published, weight decay 0.001", "darkdistill": "bounded, no weight decay"}
PARALLEL = {"eefl": "`eefl`", "darkdistill": "`darkdistill`", "parallel": DIGITS["parallel"]}
PARALLEL_CIFAR10 = {name: title for name, title in PARALLEL.items() if name != "darkdistill"}
Runs = Mapping[int, study.Cell]  # by seed


def figures(read: Read) -> Figures:
    """Return every figure of DarkDistill's section."""
    parallel = {variant: study.cells(read("darkdistill_parallel"), variant) for variant in PARALLEL}
    eefl = study.cells(read("accuracy_digits"), "eefl")
    return {
        "cifar10": cifar10(read, "accuracy_cifar10", "published", "published step", (IID, SKEWED)),
        "default": cifar10(read, "darkdistill_default", "darkdistill", "`darkdistill`", (IID,)),
        "default_time": _times_eefls_time(read, "darkdistill_default", "darkdistill"),
        "ours_gain": bound_gain(read, "darkdistill"),
        "ours_over_decay": bound_gain(read, "darkdistill", "eefl, decay"),
        "real_gain": bound_gain(read, "real images"),
        "half_gain": bound_gain(read, "real images, half rate"),
        "bound": _named(read, "darkdistill_bound_cifar10", BOUND),
        "digits": _named(read, "accuracy_digits", DIGITS, images=True),
        "sketch": _named(read, "difficulty_sketch", SKETCH, images=True),
        "ten_seeds": _named(read, "darkdistill_parallel", PARALLEL, images=True),
        "parallel_cifar10": _named(read, "darkdistill_parallel_cifar10", PARALLEL_CIFAR10),
        "digits_images": str(study.sample_count(eefl[min(eefl)])),
        "digits_error": percent(study.sample_error(eefl, study.mean_of_exits)),
        "unconditional": _gain(study.cells(read("accuracy_digits"), "published, unconditional"), eefl),
        "digits_decay": _gain(study.cells(read("accuracy_digits"), "eefl, decay"), eefl),
        "parallel_worst": percent(min(map(study.mean_of_exits, parallel["parallel"].values()))),
        "eefl_worst": percent(min(map(study.mean_of_exits, parallel["eefl"].values()))),
        "tokens": tokens(read),
        **_moved(read),
        **_last_round(read),
        **_server_step(read),
    }


def cifar10(read: Read, name: str, variant: str, title: str, alphas: Sequence[float]) -> str:
    """Return the table of one of DarkDistill's server steps beside EEFL, whose runs are of the same machine."""
    result, rows = read(name), {}
    for alpha in alphas:
        eefl = study.cells(result, "eefl", alpha=alpha)
        rows[f"`eefl`, alpha {alpha:g}"] = eefl, eefl
        rows[f"{title}, alpha {alpha:g}"] = study.cells(result, variant, alpha=alpha), eefl
    return _over_eefl(rows)


def _times_eefls_time(read: Read, name: str, variant: str) -> str:
    """Return how many times as long as EEFL's a variant's runs with IID data take."""
    ours, eefl = (study.cells(read(name), own, alpha=IID).values() for own in (variant, "eefl"))
    return f"{sum(run['seconds'] for run in ours) / sum(run['seconds'] for run in eefl):.1f}"


def bound_gain(read: Read, variant: str, base: str = "eefl") -> str:
    """Return what a variant gains over another one on CIFAR-10 at 16x16, where real images are distilled on, too."""
    result = read("darkdistill_bound_cifar10")
    return gain_between(study.interval(study.cells(result, variant), study.cells(result, base), study.mean_of_exits))


def _gain(runs: Runs, base: Runs) -> str:
    return gain_text(study.gain(runs, base, study.mean_of_exits), 2)


def _named(read: Read, name: str, titles: Mapping[str, str], *, images: bool = False) -> str:
    """Return the table of a study's variants, each beside EEFL."""
    result = read(name)
    eefl = study.cells(result, "eefl")
    return _over_eefl({title: (study.cells(result, variant), eefl) for variant, title in titles.items()}, images)


def _over_eefl(rows: Mapping[str, tuple[Runs, Runs]], images: bool = False) -> str:
    """Return a table of runs, each with those of EEFL; `images`: with intervals that know the test images' number."""
    intervals = {"95 % over seeds": study.interval}
    if images:
        intervals["over seeds and test images"] = study.interval_with_samples
    return table(
        ("", "mean of exits", "gain over EEFL", *intervals, "exits 1 to 4"),
        (
            (
                title,
                spread(study.over_seeds(runs, study.mean_of_exits), 2),
                "" if runs == base else _gain(runs, base),
                *("" if runs == base else limits(of(runs, base, study.mean_of_exits)[1:]) for of in intervals.values()),
                exits(study.exit_means(runs)),
            )
            for title, (runs, base) in rows.items()
        ),
    )


def _moved(read: Read) -> Figures:
    """Return how far the last round's distillation and decay moved the weights, in percent of the clients' movement."""
    result, found = read("darkdistill_bound_cifar10"), {}
    for variant, name in (
        ("darkdistill", "ours"), ("published", "published"), ("real images", "real"), ("real images, half rate", "half")
    ):  # fmt: skip
        runs = study.cells(result, variant)
        terms = [cell["terms"] for cell in runs.values()]
        found[f"moved_{name}"] = percent(study.over_seeds(runs, _moved_by("distillation"))[0])
        if name == "published":
            found["decay_published"] = percent(study.over_seeds(runs, _moved_by("decay"))[0])
        if name in ("ours", "real"):
            found[f"loss_{name}"] = f"{fmean(own['distillation'] for own in terms):.3f}"
        if name == "ours":
            found["variety"], found["variety_of_images"] = (
                f"{_variety(terms, prefix):.1f}" for prefix in ("distill-", "real-")
            )
    return found


def tokens(read: Read) -> str:
    """Return the table of what a transformer's generators leave to distil in the last round."""
    result = read("darkdistill_tokens")
    return table(
        (
            "token generators",
            "loss to distil",
            "moved by distillation, % of the clients",
            "by weight decay",
            "variety of batches",
        ),
        (_left(title, study.cells(result, variant)) for variant, title in TOKENS.items()),
    )


def _left(title: str, runs: Runs) -> tuple[str, ...]:
    loss, deviation = study.over_seeds(runs, _loss)
    return (
        title,
        f"{loss:.4f} ± {deviation:.4f}",
        spread(study.over_seeds(runs, _moved_by("distillation")), 2),
        spread(study.over_seeds(runs, _moved_by("decay")), 2),
        f"{_variety([cell['terms'] for cell in runs.values()], 'distill-'):.1f}",
    )


def _loss(cell: study.Cell) -> float:
    return float(cell["terms"]["distillation"])


def _moved_by(part: str) -> study.Value:
    """Return what reads how far a part of the last round's step moved the weights, by the clients' movement."""
    return lambda cell: float(cell["terms"][f"moved-{part}"] / cell["terms"]["moved-clients"])


def _variety(terms: list[Mapping[str, float]], prefix: str) -> float:
    """Return the mean variety of batches over teachers and seeds."""
    return fmean(v for own in terms for key, v in own.items() if key.startswith(prefix) and key.endswith("variety"))


def _last_round(read: Read) -> Figures:
    """Return what the generators did in the last round, with IID data."""
    runs = study.cells(read("accuracy_cifar10"), "published", alpha=IID)
    terms = [run["terms"] for run in runs.values()]
    ranks = [value for own in terms for key, value in own.items() if key.endswith("spearman") and "generator" in key]
    return {"spearman": f"{min(ranks):.2f} to {max(ranks):.2f}"}


def _server_step(read: Read) -> Figures:
    result = read("distillation_cpu")
    seconds = {name: result[name]["round_seconds"] for name in ("demo", "cifar10", "paper")}
    return {
        "seconds_demo": f"{seconds['demo']:.2f}",
        "seconds_cifar10": f"{seconds['cifar10']:.1f}",
        "seconds_paper": f"{seconds['paper']:.0f}",
        "matrix_products": percent(result["paper"]["matrix_product_share"], 0),
    }

"""Figures of DistrEE: what students reach at every exit, and by every rule that lets samples leave."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, between, exits, gain, gain_between, percent, spread, table

STUDENTS = {
    "k2 uniform": "two students",
    "k2": "two, middle exits doubled",
    "k4 uniform": "four students",
    "k4": "four, middle exits doubled",
}
RULES = {
    "own-head": "own head",
    "entropy": "entropy of the columns",
    "gate": "gate",
    "difference": "feature difference (the paper's)",
    "neighbour": "neighbour similarity",
    "random": "random exits",
}
AREAS = {**{name: title for name, title in RULES.items() if name != "random"}, "sum": "softmax of the sum, needs talk"}
POOLINGS = {"distree_policies_mean": "the mean over the map", "distree_policies": "the means of its squares"}
WHOLE = "distree_policies_whole"  # trainings with a teacher and a partition of their own, at 16x16
DEFAULT, GATE, PAPERS = "own-head", "gate", "difference"
CALIBRATED = DEFAULT, GATE, PAPERS  # rules that are calibrated for a point


def figures(read: Read) -> Figures:
    """Return every figure of the sections on accuracy and exit rules."""
    result, rules = read("distree_cifar10"), read("distree_policies")
    two, doubled, four = (result[name] for name in ("k2 uniform", "k2", "k4 uniform"))
    runs = list(rules["runs"].values())
    return {
        "students": students(read),
        "last_exit": percent(two["exits"][-1]),
        **{
            f"{name}_{what}": value
            for name, own in (("equal", two), ("doubled", doubled))
            for what, value in _validation(own, result["paper"]["exits"]).items()
        },
        "below_paper": between(p - own for own, p in zip(two["exits"], result["paper"]["exits"], strict=True)),
        "four_lost": percent(four["exits"][-1] - four["policies"]["calibrated"]["accuracy"]),
        **_poolings(read),
        "trainings": str(len(runs)),
        "short_students": exits(map(_mean, zip(*(run["exits"]["test"] for run in runs), strict=True))),
        "short_last": last_exit(read),
        "rules": _rules(rules),
        "gains_validation": _gains(rules, "validation"),
        "gains_test": _gains(rules, "test"),
        "areas": _areas(runs),
        "oracle_accuracy": percent(_mean(run["oracle"]["accuracy"] for run in runs)),
        "oracle_saved": percent(_mean(run["oracle"]["saved"] for run in runs), 0),
        "fixable": _fixable(runs),
        "calibrated_validation": _calibrated(runs, "calibrated_unseen", "validation"),
        "calibrated": _calibrated(runs, "calibrated", "test"),
        "broken_mean": _broken(runs, "mean"),
        "broken_bound": _broken(runs, "bound"),
        "bound_costs": between(_bound_costs(runs), 1),
        "lost_at_paper": percent(
            _mean(run["exits"]["test"][-1] for run in runs) - rules["at_saving"]["test"]["0.276"][DEFAULT]["accuracy"]
        ),
        **{
            f"{title}_{what}": figure(read, rule)
            for title, rule in (("own", DEFAULT), ("papers", PAPERS))
            for what, figure in (("saved", calibrated_saved), ("lost", calibrated_lost))
        },
        **_whole(read(WHOLE)),
        **_federated(read),
    }


def students(read: Read) -> str:
    """Return the table of every exit, and of the published thresholds, beside the paper."""
    result = read("distree_cifar10")
    paper = result["paper"]
    rows = [
        (title, exits(own["exits"]), _point(own["policies"]["published"]))
        for own, title in ((result[name], title) for name, title in STUDENTS.items())
    ]
    rows.append(("the paper, 200 epochs", exits(paper["exits"], 0), _point(paper, 0)))
    return table(("", "exits 1 to 7", "published thresholds: accuracy (MACs saved)"), rows)


def last_exit(read: Read) -> str:
    """Return what two students reach at their last exits, mean over trainings."""
    return percent(_mean(run["exits"]["test"][-1] for run in read("distree_policies")["runs"].values()))


def calibrated_saved(read: Read, rule: str = DEFAULT) -> str:
    """Return the share of the MACs that exits calibrated by the bound save on test images, mean over trainings."""
    return percent(_mean(point["saved"] for point in _calibrated_points(read, rule)))


def calibrated_lost(read: Read, rule: str = DEFAULT) -> str:
    """Return how many points exits calibrated by the bound lose on test images, mean over trainings."""
    return percent(_mean(map(_lost, _calibrated_points(read, rule))))


def whole_over_papers(read: Read, saving: str = "0.276") -> str:
    """Return what the default rule gains over the paper's on test images, over whole trainings."""
    return _over_trainings(read(WHOLE)["at_saving"]["test"][saving][DEFAULT])


def _over_trainings(rule: dict[str, Any]) -> str:
    return gain_between(study.interval_of([mean for mean, _ in rule["each"]]))


def _whole(result: dict[str, Any]) -> Figures:
    """Return the tables of trainings that share nothing: each rule's gain, and what calibration saves and loses."""
    runs, measured = list(result["runs"].values()), result["at_saving"]["test"]

    def over(value: Callable[[dict[str, Any]], float]) -> str:
        return spread(study.spread_of([value(run) for run in runs]))

    return {
        "whole_trainings": str(len(runs)),
        "whole_over_papers": _over_trainings(measured["0.276"][DEFAULT]),
        "whole_exits": exits(map(_mean, zip(*(run["exits"]["test"] for run in runs), strict=True))),
        "whole_last": over(lambda run: run["exits"]["test"][-1]),
        "whole_gains": table(
            ("points over feature difference, test", *_wanted(measured)),
            (
                (title, *(_over_trainings(at[name]) for at in measured.values()))
                for name, title in RULES.items()
                if name != PAPERS
            ),
        ),
        "whole_calibrated": table(
            ("calibrated for a point by the bound, test", "MACs saved, %", "points lost"),
            (
                (
                    RULES[name],
                    over(lambda run, name=name: run["calibrated"]["bound"][name]["saved"]),  # type: ignore[misc]
                    over(lambda run, name=name: _lost(run["calibrated"]["bound"][name])),  # type: ignore[misc]
                )
                for name in CALIBRATED
            ),
        ),
    }


def _calibrated_points(read: Read, rule: str) -> list[dict[str, float]]:
    return [run["calibrated"]["bound"][rule] for run in read("distree_policies")["runs"].values()]


def _poolings(read: Read) -> Figures:
    """Return the table of trainings by what exits see of a map, and what the squares bring and cost beside the mean."""
    mean, squares = trainings = [list(read(name)["runs"].items()) for name in POOLINGS]
    rows = [
        (title, seed.removeprefix("seed-"), *(exits(run["exits"][kind]) for kind in ("validation", "test")))
        for title, runs in zip(POOLINGS.values(), trainings, strict=True)
        for seed, run in runs
    ]

    def over(value: Callable[[dict[str, Any]], float]) -> list[float]:
        return [value(run) - value(other) for (_, run), (_, other) in zip(squares, mean, strict=True)]

    def more(value: Callable[[dict[str, Any]], float]) -> str:
        return percent(value(squares[0][1]) / value(mean[0][1]) - 1)

    return {
        "poolings": table(("exits see", "seed", "exits 1 to 7, validation", "test"), rows),
        "squares_first": between(over(lambda run: run["exits"]["validation"][0]), 1),
        "squares_last": between(over(lambda run: run["exits"]["validation"][-1]), 1),
        "mean_saved": calibrated_saved(lambda _: read("distree_policies_mean")),
        "mean_lost": calibrated_lost(lambda _: read("distree_policies_mean")),
        "squares_macs": more(lambda run: run["full_macs"]),
        "squares_parameters": more(lambda run: sum(run["parameters"])),
    }


def _rules(result: dict[str, Any]) -> str:
    """Return the table of each rule's accuracy on test images at every saving."""
    measured = result["at_saving"]["test"]
    return table(
        ("test accuracy at this saving", *_wanted(measured)),
        ((title, *(percent(at[name]["accuracy"]) for at in measured.values())) for name, title in RULES.items()),
    )


def _gains(result: dict[str, Any], images: str) -> str:
    """Return the table of each rule's gain over feature difference with its standard error, paired by image."""
    measured = result["at_saving"][images]
    return table(
        (f"points over feature difference, {images}", *_wanted(measured)),
        (
            (title, *(gain(at[name]["gain"], 2) for at in measured.values()))
            for name, title in RULES.items()
            if name != PAPERS
        ),
    )


def _areas(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table of the ROC areas for "the common answer is right", over students and trainings."""
    return table(
        ("area under the ROC curve, test", *(f"exit {number}" for number in range(2, 7))),
        ((title, *(_range(own) for own in zip(*_each(runs, name), strict=True))) for name, title in AREAS.items()),
    )


def _each(runs: Sequence[dict[str, Any]], rule: str) -> list[list[float]]:
    return [areas for run in runs for areas in run["rank_area"]["test"][rule].values()]


def _fixable(runs: Sequence[dict[str, Any]]) -> str:
    """Return the table of images that only the last exit has right: what a better rule could win at most."""
    savings = list(runs[0]["at_saving"])
    return table(
        ("last right, exit wrong: share of the test images", *_wanted(savings)),
        (
            (
                RULES[name],
                *(
                    f"{percent(_mean(run['at_saving'][at][name]['last_right_exit_wrong'] for run in runs))} %"
                    for at in savings
                ),
            )
            for name in (PAPERS, DEFAULT, GATE)
        ),
    )


def _calibrated(runs: Sequence[dict[str, Any]], part: str, images: str) -> str:
    """Return the table of what calibration for a point saves and loses, training by training."""
    return table(
        (
            f"calibrated for a point, {images}",
            *(f"students {number}: lost (saved)" for number in range(1, len(runs) + 1)),
        ),
        (
            (
                f"{RULES[name]}, {words}",
                *(
                    f"{percent(_lost(run[part][how][name]), 2)} ({percent(run[part][how][name]['saved'])} %)"
                    for run in runs
                ),
            )
            for how, words in (("mean", "by the mean"), ("bound", "by the bound"))
            for name in CALIBRATED
        ),
    )


def _broken(runs: Sequence[dict[str, Any]], how: str) -> str:
    """Return how many of the table's calibrations lose more than the point on test images."""
    lost = [_lost(run["calibrated"][how][name]) for run in runs for name in CALIBRATED]
    return f"{sum(one > 0.01 + 1e-9 for one in lost)} of {len(lost)}"


def _bound_costs(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Return how much less of the MACs each calibration saves on test images for its standard error."""
    found = [(run["calibrated"]["mean"][name], run["calibrated"]["bound"][name]) for run in runs for name in CALIBRATED]
    return [mean["saved"] - bound["saved"] for mean, bound in found]


def _lost(point: dict[str, float]) -> float:
    """Return how much accuracy a point loses against the last exits."""
    return point["last_right_exit_wrong"] - point["exit_right_last_wrong"]


def _wanted(savings: Iterable[str]) -> list[str]:
    return [f"{100 * float(saving):g} %" for saving in savings]


def _point(point: dict[str, float], digits: int = 1) -> str:
    return f"{percent(point['accuracy'], digits)} ({percent(point['saved'])} %)"


def _validation(own: dict[str, Any], paper: Sequence[float]) -> Figures:
    """Return how far the exits are from the paper's on average, and the last one, on validation images."""
    reached = own["training"]["exits"]["validation"]
    apart = sum(abs(one - other) for one, other in zip(reached, paper, strict=True)) / len(paper)
    return {"apart": percent(apart), "last": percent(reached[-1])}


def _range(areas: Iterable[float]) -> str:
    least, *_, greatest = sorted(areas) * 2
    return f"{least:.2f}" if f"{least:.2f}" == f"{greatest:.2f}" else f"{least:.2f} to {greatest:.2f}"


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _federated(read: Read) -> Figures:
    variants = ("teacher", "students", "mean", "single")
    runs = {name: study.cells(read("distree_federated"), name) for name in variants}
    last = {f"federated_{name}": percent(study.over_seeds(own, study.last_exit)[0]) for name, own in runs.items()}
    first = {
        f"federated_first{suffix}": percent(study.exit_means(runs[name])[0])
        for suffix, name in (("", "students"), ("_mean", "mean"))
    }
    return last | first | {"federated_seeds": str(len(runs["students"]))}

"""Figures of DistrEE: what students reach, at every exit and with every exit policy."""

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.tables import study
from benchmarks.tables.cells import Figures, Read, between, exits, percent, table

STUDENTS = {
    "k2 uniform": "two students",
    "k2": "two, middle exits doubled",
    "k4 uniform": "four students",
    "k4": "four, middle exits doubled",
}
POLICIES = {"difference": "feature difference", "neighbour": "neighbour similarity", "random": "random exits"}
NEAR_CALIBRATED = 1.15  # the point of the curve that saves about as much as the calibrated thresholds do


def figures(read: Read) -> Figures:
    """Return every figure of the sections on accuracy and exit policies."""
    result = read("distree_cifar10")
    two, doubled, four = (result[name] for name in ("k2 uniform", "k2", "k4 uniform"))
    areas = two["rank_area"]
    every = pick_point(two["curves"]["difference"])
    return {
        "students": students(read),
        "policies": policies(read),
        "last_exit": last_exit(read),
        **{
            f"{name}_{what}": value
            for name, own in (("equal", two), ("doubled", doubled))
            for what, value in _validation(own, result["paper"]["exits"]).items()
        },
        "below_paper": _below(two["exits"], result["paper"]["exits"]),
        **{f"over_random_{name.replace(' ', '_')}": _over_random(result[name]) for name in STUDENTS},
        "standard_error": percent((two["exits"][-1] * (1 - two["exits"][-1]) / 10_000) ** 0.5),
        "oracle_saved": percent(two["policies"]["oracle"]["saved"], 0),
        "oracle_accuracy": percent(two["policies"]["oracle"]["accuracy"]),
        "area_difference": _areas(area for at in areas for area in at["difference"].values()),
        "area_softmax": _areas(at["softmax of the sum"] for at in areas),
        "policies_apart": percent(
            max(
                abs(at["difference"]["accuracy"] - at["neighbour"]["accuracy"])
                for name in STUDENTS
                for at in result[name]["at_saving"].values()
            )
        ),
        "calibrated_saved": percent(two["policies"]["calibrated"]["saved"], 0),
        "calibrated_lost": calibrated_lost(read),
        "every_saved": percent(every["saved"], 0),
        "every_lost": percent(two["exits"][-1] - every["accuracy"]),
        "four_lost": _lost(four),
        **_federated(read),
    }


def students(read: Read) -> str:
    """Return the table of every exit, and of the calibrated and the published thresholds, beside the paper."""
    result = read("distree_cifar10")
    paper = result["paper"]
    rows = [_students_row(title, result[name]) for name, title in STUDENTS.items()]
    published = f"{percent(paper['accuracy'], 0)}, {percent(paper['saved'])} % saved"
    rows.append(("the paper, 200 epochs", exits(paper["exits"], 0), "", "", published))
    return table(("", "exits 1 to 7", "calibrated for a point", "MACs saved", "published thresholds"), rows)


def policies(read: Read) -> str:
    """Return the table of what each kind of policy reaches at the same cost, and what it saved of all MACs."""
    savings = read("distree_cifar10")["k2 uniform"]["at_saving"]
    return table(
        ("two students: accuracy (MACs saved)", *(f"{100 * float(saving):g} % wanted" for saving in savings)),
        ((title, *(_reached(at[name]) for at in savings.values())) for name, title in POLICIES.items()),
    )


def last_exit(read: Read) -> str:
    """Return what two students reach at their last exits."""
    return percent(read("distree_cifar10")["k2 uniform"]["exits"][-1])


def calibrated_saved(read: Read) -> str:
    """Return the share of the MACs that two students' calibrated exits save."""
    return percent(read("distree_cifar10")["k2 uniform"]["policies"]["calibrated"]["saved"])


def calibrated_lost(read: Read) -> str:
    """Return how many points two students' calibrated exits lose."""
    return _lost(read("distree_cifar10")["k2 uniform"])


def pick_point(curve: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Return the point of a curve over thresholds at every exit that is compared with the calibrated ones."""
    (found,) = (point for point in curve if abs(point["p"] - NEAR_CALIBRATED) < 1e-6)
    return found


def _students_row(title: str, result: dict[str, Any]) -> Sequence[str]:
    calibrated, published = (result["policies"][name] for name in ("calibrated", "published"))
    return (
        title,
        exits(result["exits"]),
        percent(calibrated["accuracy"]),
        f"{percent(calibrated['saved'])} %",
        f"{percent(published['accuracy'])}, {percent(published['saved'])} % saved",
    )


def _reached(point: dict[str, float]) -> str:
    return f"{percent(point['accuracy'])} ({percent(point['saved'])} %)"


def _validation(own: dict[str, Any], paper: Sequence[float]) -> Figures:
    """Return how far the exits are from the paper's on average, and the last one, on validation images."""
    reached = own["training"]["exits"]["validation"]
    apart = sum(abs(one - other) for one, other in zip(reached, paper, strict=True)) / len(paper)
    return {"apart": percent(apart), "last": percent(reached[-1])}


def _below(reached: Sequence[float], paper: Sequence[float]) -> str:
    return between(theirs - ours for ours, theirs in zip(reached, paper, strict=True))


def _over_random(own: dict[str, Any]) -> str:
    found = [at["difference"]["accuracy"] - at["random"]["accuracy"] for at in own["at_saving"].values()]
    if min(found) < 0:
        return f"{percent(-min(found))} below to {percent(max(found))} above"
    return between(found, 1)


def _areas(areas: Iterable[float]) -> str:
    least, *_, greatest = sorted(areas)
    return f"{least:.2f} to {greatest:.2f}"


def _lost(own: dict[str, Any]) -> str:
    return percent(own["exits"][-1] - own["policies"]["calibrated"]["accuracy"])


def _federated(read: Read) -> Figures:
    runs = {name: study.cells(read("distree_federated"), name) for name in ("teacher", "students", "single")}
    alike = sum(study.last_exit(run) == study.last_exit(runs["single"][seed]) for seed, run in runs["students"].items())
    last = {f"federated_{name}": percent(study.over_seeds(own, study.last_exit)[0]) for name, own in runs.items()}
    return last | {"federated_alike": str(alike), "federated_seeds": str(len(runs["students"]))}

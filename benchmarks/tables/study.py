"""Figures of a study's results, `study.json` as `python -m server study --save` writes it."""

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from scipy import stats

LEVEL = 0.95  # of an interval

Cell = Mapping[str, Any]
Value = Callable[[Cell], float]


def cells(result: Mapping[str, Any], variant: str, **point: Any) -> dict[int, Cell]:
    """Return a variant's runs by seed, at one point of the grid; raises ValueError if there are none.

    `point`: the grid's keys without their sections.
    """
    found = {
        cell["seed"]: cell
        for cell in result["cells"]
        if cell["variant"] == variant and {key.partition(".")[2]: v for key, v in cell["point"].items()} == point
    }
    if not found:
        raise ValueError(f"{result['name']} has no runs of {variant} at {point}")
    return found


def measured(cell: Cell) -> Mapping[str, Any]:
    """Return the server's evaluation of a run's end, or that of its clients."""
    evaluation: Mapping[str, Any] = cell["accuracy"] or cell["client_accuracy"]
    return evaluation


def mean_of_exits(cell: Cell) -> float:
    """Return the mean accuracy over exits."""
    return float(measured(cell)["mean"])


def last_exit(cell: Cell) -> float:
    """Return the accuracy of the last exit."""
    return float(measured(cell)["exits"][-1])


def over_seeds(found: Mapping[int, Cell], value: Value) -> tuple[float, float]:
    """Return a number's mean and standard deviation over seeds; the latter is 0 for one seed."""
    return spread_of([value(cell) for cell in found.values()])


def gain(found: Mapping[int, Cell], base: Mapping[int, Cell], value: Value) -> tuple[float, float]:
    """Return mean and standard deviation of a number's difference to the base's run of the same seed."""
    return spread_of([value(cell) - value(base[seed]) for seed, cell in found.items() if seed in base])


def interval(found: Mapping[int, Cell], base: Mapping[int, Cell], value: Value) -> tuple[float, float, float]:
    """Return the mean of a number's differences to the base's runs of the same seeds, and its 95 % interval.

    The interval is Student's t; raises ValueError below two shared seeds.
    """
    return interval_of([value(cell) - value(base[seed]) for seed, cell in found.items() if seed in base])


def interval_of(gains: list[float]) -> tuple[float, float, float]:
    """Return the mean of differences and its 95 % interval, Student's t; raises ValueError for fewer than two."""
    if len(gains) < 2:
        raise ValueError("an interval needs two shared seeds")
    mean, deviation = spread_of(gains)
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(gains) - 1)) * deviation / math.sqrt(len(gains))
    return mean, mean - half, mean + half


def interval_with_samples(
    found: Mapping[int, Cell], base: Mapping[int, Cell], value: Value
) -> tuple[float, float, float]:
    """Return what `interval` does, widened by the choice of the test samples, which all seeds share.

    That choice counts with the most that it can be for a difference of two accuracies, so the interval is rather too
    wide.
    """
    mean, low, _ = interval(found, base, value)
    samples = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(2) * sample_error(base, value)
    half = math.hypot(mean - low, samples)
    return mean, mean - half, mean + half


def last_means(cell: Cell, evaluations: int) -> float:
    """Return the mean of the last evaluations' mean accuracies over exits; raises ValueError if there are fewer."""
    rounds = sorted(cell["means"], key=int)
    if len(rounds) < evaluations:
        raise ValueError(f"{cell['run']} has {len(rounds)} evaluations, not {evaluations}")
    return statistics.fmean(cell["means"][round_] for round_ in rounds[-evaluations:])


def sample_count(cell: Cell) -> int:
    """Return how many test samples a run's calibrated exits were measured on."""
    return sum(measured(cell)["calibrated"]["exit_histogram"])


def sample_error(found: Mapping[int, Cell], value: Value) -> float:
    """Return the binomial standard error of an accuracy by the choice of the test samples, which no seed changes.

    Two methods' difference has up to sqrt(2) times as much, less where both err on the same samples.
    """
    share, samples = over_seeds(found, value)[0], min(map(sample_count, found.values()))
    return math.sqrt(share * (1 - share) / samples)


def exit_means(found: Mapping[int, Cell]) -> list[float]:
    """Return each exit's mean accuracy over seeds."""
    return [
        statistics.fmean(column) for column in zip(*(measured(cell)["exits"] for cell in found.values()), strict=True)
    ]


def spread_of(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is 0 for one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0

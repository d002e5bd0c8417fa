"""The numbers by which finished runs are compared, of one run or of the same run with several seeds."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError
from strategies.callbacks.accuracy import above_majority
from strategies.callbacks.report.records import RunData
from strategies.callbacks.units import byte_unit, bytes_text, points_text, seconds_text

NONE = "-"  # where a run has no such number
LEVEL = 0.95  # of an interval

Value = Callable[[RunData], float | None]


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone."""

    label: str
    runs: Mapping[int, RunData]  # by seed

    @property
    def all(self) -> list[RunData]:
        """The runs, by seed."""
        return [self.runs[seed] for seed in sorted(self.runs)]


@dataclass(frozen=True)
class Spread:
    """A number over seeds."""

    mean: float
    deviation: float | None  # standard deviation of a sample; None of one run
    values: Mapping[int, float]  # by seed


@dataclass(frozen=True)
class Gain:
    """What a group has more than another one, paired by seed: runs of one seed share their data and their clients."""

    mean: float
    deviation: float | None  # None of one pair
    interval: tuple[float, float] | None  # of the mean, by Student's t with `LEVEL`; None of one pair
    seeds: int


@dataclass(frozen=True)
class Measure:
    """A number of a run."""

    name: str  # of its row in a table
    value: Value
    text: Callable[[float, float | None], str]  # of a mean and its deviation over seeds


def spread(group: Group, value: Value) -> Spread | None:
    """Return a number's mean and deviation over a group's runs; None if no run has it."""
    values = {seed: number for seed, run in sorted(group.runs.items()) if (number := value(run)) is not None}
    if not values:
        return None
    numbers = list(values.values())
    return Spread(statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else None, values)


def paired_gain(group: Group, base: Group, value: Value) -> Gain | None:
    """Return what a group has more than the base, over the seeds that both have; None if they share none.

    Runs whose accuracies are of different samples, the server's and the clients', share none.
    Raises `UserError` where scipy is missing, which knows Student's t.
    """
    own, other = spread(group, value), spread(base, value)
    both = sorted(own.values.keys() & other.values.keys()) if own and other else []
    shared = [seed for seed in both if group.runs[seed].on_server == base.runs[seed].on_server]
    if not (own and other and shared):
        return None
    gains = [own.values[seed] - other.values[seed] for seed in shared]
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return Gain(mean, None, None, len(gains))
    deviation = statistics.stdev(gains)
    half = _quantile(len(gains) - 1) * deviation / math.sqrt(len(gains))
    return Gain(mean, deviation, (mean - half, mean + half), len(gains))


def mean_of_exits(run: RunData) -> float | None:
    """Return the last mean accuracy over exits, on the server's test samples, or else over the clients."""
    return run.means[-1][1] if run.means else None


def measures(runs: Sequence[RunData]) -> list[Measure]:
    """Return all numbers that at least one of the runs has, in the order of a table's rows."""
    evaluated = [run for run in runs if run.evaluated]
    exits = max((len(run.evaluated[-1][1]) for run in evaluated), default=0)
    found = [
        Measure("mean of exits", mean_of_exits, percents),
        *(Measure(f"exit {number}", _exit(number), percents) for number in range(1, exits + 1)),
        Measure("calibrated", lambda run: _calibrated(run, "accuracy"), percents),
        Measure("  million MACs", lambda run: _scaled(_calibrated(run, "mean_macs"), 1e-6), _decimals),
        Measure("on clients", lambda run: run.clients.get("mean"), percents),
        Measure("  spread over them", lambda run: run.clients.get("mean_spread"), percents),
        Measure("  sampled at least once", lambda run: run.clients.get("sampled", {}).get("mean"), percents),
        Measure("  majority class", lambda run: run.clients.get("majority"), percents),
        Measure("  tuned", lambda run: _tuned(run, "accuracy"), percents),
        Measure("  MACs saved", lambda run: _tuned(run, "saved") if above_majority(run.clients) else None, percents),
        Measure("  loss allowed", lambda run: run.clients.get("accuracy_loss"), lambda mean, _: points_text(mean)),
        Measure("rounds", lambda run: float(len(run.rounds)), _whole),
        Measure("left out", _left_out, _whole),
        Measure("time", lambda run: run.seconds, _seconds),
        Measure("device time", lambda run: run.device_seconds if run.timed else None, _seconds),
        Measure("bytes down", lambda run: float(sum(run.traffic("down"))), _bytes),
        Measure("bytes up", lambda run: float(sum(run.traffic("up"))), _bytes),
    ]
    return [measure for measure in found if any(measure.value(run) is not None for run in runs)]


def percents(mean: float, deviation: float | None) -> str:
    """Return a share in [0, 1], with its deviation over seeds if there is one: 87.5 %, or 87.5 ± 2.1 %."""
    return f"{100 * mean:.1f} %" if deviation is None else f"{100 * mean:.1f} ± {100 * deviation:.1f} %"


def _decimals(mean: float, deviation: float | None) -> str:
    return f"{mean:.3f}" if deviation is None else f"{mean:.3f} ± {deviation:.3f}"


def _whole(mean: float, deviation: float | None) -> str:
    return f"{mean:.0f}" if not deviation else f"{mean:.1f} ± {deviation:.1f}"


def _seconds(mean: float, deviation: float | None) -> str:
    return seconds_text(mean) if deviation is None else f"{seconds_text(mean)} ± {seconds_text(deviation)}"


def _bytes(mean: float, deviation: float | None) -> str:
    if not deviation:
        return bytes_text(mean)
    size, unit = byte_unit(mean)
    return f"{mean / size:.1f} ± {deviation / size:.1f} {unit}"


def _exit(number: int) -> Value:
    def value(run: RunData) -> float | None:
        exits = run.evaluated[-1][1] if run.evaluated else []
        return exits[number - 1] if number <= len(exits) else None

    return value


def _calibrated(run: RunData, key: str) -> float | None:
    chosen: Mapping[str, Any] = run.final.get("calibrated") or {}
    return chosen.get(key)


def _tuned(run: RunData, key: str) -> float | None:
    tuned: Mapping[str, Any] = run.clients.get("tuned") or {}
    return tuned.get(key)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _left_out(run: RunData) -> float:
    return float(len(run.refused) + sum(len(event["failures"]) for event in run.rounds))


def _quantile(freedom: int) -> float:
    """Return the number of deviations of a two-sided interval."""
    try:
        from scipy import stats
    except ImportError as error:
        raise UserError("intervals over seeds need scipy: pip install -e '.[report]'") from error
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))

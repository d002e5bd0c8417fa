"""One line per round, and a closing table."""

from collections.abc import Mapping, Sequence
from logging import ERROR, INFO
from typing import TYPE_CHECKING, Any

from flwr.supercore import log

from strategies.callbacks.accuracy import majority_text, mean_text, samples_text, tuned_text
from strategies.callbacks.base import Callback
from strategies.callbacks.units import bytes_text, percent_text, rejected_text, seconds_text, spread_text
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy


class Progress(Callback):
    """Logs a line per round and the closing table."""

    def __init__(self) -> None:
        self._records: list[Record] = []  # of this start: a resumed run's earlier rounds may have run elsewhere

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Forget the records of an earlier start."""
        self._records = []

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Log one line."""
        self._records.append(record)
        log(INFO, "%s", round_line(record, _remaining(self._records)))

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Log the closing table, and the reason if the run failed."""
        for line in closing_table(self._records):
            log(INFO, "%s", line)
        if failure:
            log(ERROR, "the run failed after round %d: %s", strategy.round, failure)


def round_line(record: Record, remaining: float) -> str:
    """Return the line of a round; `remaining` seconds are expected to the end."""
    parts = [f"round {record.round}/{record.rounds}"]
    if record.accuracy:
        parts.append(f"accuracy {percent_text(record.accuracy['mean'])} ({_each(record.accuracy)})")
    if record.client_accuracy:
        parts.append(f"on clients {mean_text(record.client_accuracy)} ({_each(record.client_accuracy)})")
    parts.append(seconds_text(record.seconds["round"]))
    if record.round < record.rounds:
        parts.append(f"ETA {seconds_text(remaining)}")
    if record.failures:
        parts.append(f"{len(record.failures)} left out{rejected_text(len(record.rejected))}")
    if record.late:
        parts.append(f"{len(record.late)} late from earlier rounds")
    return ", ".join(parts)


def closing_table(records: Sequence[Record]) -> list[str]:
    """Return the lines after the last round; none if there was no round."""
    if not records:
        return []
    rows: list[tuple[str, str]] = []
    if measured := [r.accuracy for r in records if r.accuracy]:
        rows += _server_rows(measured[-1])
    if measured := [r.client_accuracy for r in records if r.client_accuracy]:
        rows += _client_rows(measured[-1])
    down, up = (bytes_text(sum(r.traffic.get(way, 0) for r in records)) for way in ("down", "up"))
    left, rejected = sum(len(r.failures) for r in records), sum(len(r.rejected) for r in records)
    rows += [
        ("rounds", str(len(records))),
        ("time", seconds_text(sum(r.seconds["round"] for r in records))),
        ("traffic", f"{down} down, {up} up"),
        ("left out", f"{left}{rejected_text(rejected)}"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {value}" for name, value in rows]


def _server_rows(accuracy: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [(f"exit {number}", percent_text(value)) for number, value in enumerate(accuracy["exits"], start=1)]
    rows.append(("mean of exits", percent_text(accuracy["mean"])))
    if chosen := accuracy.get("calibrated"):
        share = percent_text(chosen["mean_macs"] / accuracy["exit_macs"][-1])
        rows.append(("calibrated", f"{percent_text(chosen['accuracy'])} at {share} of full MACs"))
    return rows


def _client_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    pairs = zip(summary["exits"], summary["spread"], strict=True)
    sampled = summary["sampled"]
    return [
        ("on clients", f"{summary['clients']}, mean ± spread over them, {samples_text(summary)}"),
        *((f"  exit {number}", spread_text(*pair)) for number, pair in enumerate(pairs, start=1)),
        ("  mean of exits", mean_text(summary)),
        ("  sampled at least once", f"{mean_text(sampled)} ({sampled.get('clients', 0)} of {summary['clients']})"),
        ("  majority class", majority_text(summary)),
        ("  tuned", tuned_text(summary)),
    ]


def _each(measured: Mapping[str, Any]) -> str:
    return "exits " + " ".join(f"{100 * accuracy:.1f}" for accuracy in measured["exits"])


def _remaining(records: Sequence[Record]) -> float:
    """Return the expected seconds of the remaining rounds: their number times the mean of those so far."""
    mean = sum(record.seconds["round"] for record in records) / len(records)
    return mean * (records[-1].rounds - records[-1].round)

"""One line per round, and a closing table."""

from collections.abc import Sequence
from logging import ERROR, INFO
from typing import TYPE_CHECKING

from flwr.supercore import log

from strategies.callbacks.accuracy import exit_accuracies
from strategies.callbacks.base import Callback, Record
from strategies.callbacks.units import bytes_text, percent_text, seconds_text

if TYPE_CHECKING:
    from strategies.base import EarlyExitStrategy


class Progress(Callback):
    """Logs how the run goes."""

    def __init__(self) -> None:
        self._records: list[Record] = []  # of this start: a resumed run's earlier rounds may have run elsewhere

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Forget what an earlier start did."""
        self._records = []

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Log one line."""
        self._records.append(record)
        log(INFO, "%s", round_line(record, _remaining(self._records)))

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Log the closing table; of a failed run also why it failed."""
        for line in closing_table(self._records):
            log(INFO, "%s", line)
        if failure:
            log(ERROR, "the run failed after round %d: %s", strategy.round, failure)


def round_line(record: Record, remaining: float) -> str:
    """Return the line of a round; `remaining` seconds are expected to the end."""
    parts = [f"round {record.round}/{record.rounds}"]
    if exits := exit_accuracies(record.accuracy, record.client_accuracy):
        each = " ".join(f"{100 * accuracy:.1f}" for accuracy in exits)
        kind = "accuracy" if record.accuracy else "validation accuracy"
        parts.append(f"{kind} {percent_text(sum(exits) / len(exits))} (exits {each})")
    parts.append(seconds_text(record.seconds["round"]))
    if record.round < record.rounds:
        parts.append(f"ETA {seconds_text(remaining)}")
    if record.failures:
        parts.append(f"{len(record.failures)} left out")
    return ", ".join(parts)


def closing_table(records: Sequence[Record]) -> list[str]:
    """Return the lines after the last round; none if there was no round."""
    if not records:
        return []
    rows: list[tuple[str, str]] = []
    measured = [r for r in records if r.accuracy] or [r for r in records if r.client_accuracy]
    if measured:
        last = measured[-1]
        exits = exit_accuracies(last.accuracy, last.client_accuracy)
        rows += [(f"exit {number}", percent_text(accuracy)) for number, accuracy in enumerate(exits, start=1)]
        rows.append(("mean of exits", percent_text(sum(exits) / len(exits))))
        if chosen := last.accuracy.get("calibrated"):
            share = percent_text(chosen["mean_macs"] / last.accuracy["exit_macs"][-1])
            rows.append(("calibrated", f"{percent_text(chosen['accuracy'])} at {share} of full MACs"))
    down, up = (bytes_text(sum(r.traffic.get(way, 0) for r in records)) for way in ("down", "up"))
    rows += [
        ("rounds", str(len(records))),
        ("time", seconds_text(sum(r.seconds["round"] for r in records))),
        ("traffic", f"{down} down, {up} up"),
        ("left out", str(sum(len(r.failures) for r in records))),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name.ljust(width)}  {value}" for name, value in rows]


def _remaining(records: Sequence[Record]) -> float:
    """Return the seconds that the rounds still to come take if they take as long as those so far on average."""
    mean = sum(record.seconds["round"] for record in records) / len(records)
    return mean * (records[-1].rounds - records[-1].round)

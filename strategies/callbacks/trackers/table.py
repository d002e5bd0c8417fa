"""The rounds' numbers as CSV, a row per round."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.storage.files import write_text
from common.storage.run_files import read_events
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers.scalars import scalars
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy

FILE, METRICS = "metrics.csv", "metrics.jsonl"


class Table(Callback):
    """Writes `metrics.csv` into the run folder, anew after every round: a later round may have more columns."""

    def __init__(self, folder: Path) -> None:
        self.path, self.metrics = folder / FILE, folder / METRICS
        self._rows: list[dict[str, Any]] = []

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Keep the rounds that a resumed run does not repeat, and add those that a kill kept out of the table."""
        if not strategy.round:
            return
        rows: dict[int, dict[str, Any]] = {}
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = {int(row["round"]): row for row in csv.DictReader(file)}
        for event in read_events(self.metrics):
            if event.pop("event") == "round" and event["round"] not in rows:
                rows[event["round"]] = _row(Record(**event))
        self._rows = [rows[round_] for round_ in sorted(rows) if round_ <= strategy.round]

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Add a row."""
        self._rows.append(_row(record))
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())


def _row(record: Record) -> dict[str, Any]:
    return {"round": record.round, **scalars(record)}

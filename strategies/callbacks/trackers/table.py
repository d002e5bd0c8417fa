"""The rounds' numbers as CSV, a row per round."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.storage.files import write_text
from strategies.callbacks.base import Callback
from strategies.callbacks.trackers.scalars import scalars
from strategies.engine.rounds import Record

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy

FILE = "metrics.csv"


class Table(Callback):
    """Writes `metrics.csv` into the run folder, anew after every round: a later round may have more columns."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._rows: list[dict[str, Any]] = []

    def on_start(self, strategy: "EarlyExitStrategy") -> None:
        """Keep the rounds that a resumed run does not repeat."""
        if strategy.round and self.path.exists():
            with self.path.open(newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["round"]) <= strategy.round]

    def on_round(self, strategy: "EarlyExitStrategy", record: Record) -> None:
        """Add a row."""
        self._rows.append({"round": record.round, **scalars(record)})
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_text(self.path, text.getvalue())

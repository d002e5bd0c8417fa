"""A study's progress: a bar over the rounds of all runs with the time that is left, and a line per running one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from server.commands import left_out
from server.commands.launch import Outcome
from server.commands.tail import Tail
from server.study.cells import log_file
from server.study.plan import Cell
from strategies.callbacks.units import percent_text


class StudyProgress:
    """Shows how far a study is."""

    def __init__(self, rounds: Mapping[Path, int]) -> None:
        """`rounds`: of each run that is not finished yet, by its folder."""
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("ETA"), TimeRemainingColumn(),
        )  # fmt: skip
        self._bars = Progress(*columns)
        self._all = self._bars.add_task("rounds of all runs", total=sum(rounds.values()) or None)
        self._rounds = rounds
        self._done = dict.fromkeys(rounds, 0)
        self._tails: dict[Path, Tail] = {}
        self._lines: dict[Path, TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave them as they are."""
        self._bars.stop()

    def show(self, running: Sequence[Cell]) -> None:
        """Look at the metrics of the running cells."""
        for cell in running:
            if cell.folder not in self._lines:
                self._lines[cell.folder] = self._bars.add_task(_name(cell), total=self._rounds[cell.folder])
            self._look(cell)
        self._bars.update(self._all, completed=sum(self._done.values()))

    def ended(self, cell: Cell, outcome: Outcome) -> None:
        """Say how a cell ended, and what it left out."""
        self._look(cell)
        if (line := self._lines.pop(cell.folder, None)) is not None:
            self._bars.remove_task(line)
        text = "completed" if outcome.completed else f"{outcome.failure} (log: {log_file(cell.folder)})"
        for words in [*left_out.summary(cell.folder), text]:
            self._bars.console.print(f"{_name(cell)}: {words}", markup=False, highlight=False, soft_wrap=True)

    def _look(self, cell: Cell) -> None:
        events = self._tails.setdefault(cell.folder, Tail(cell.folder / "metrics.jsonl")).read()
        rounds: list[dict[str, Any]] = [event for event in events if event["event"] == "round"]
        if not rounds:
            return
        self._done[cell.folder] = rounds[-1]["round"]
        measured = rounds[-1]["accuracy"] or rounds[-1]["client_accuracy"]
        mean = f", {percent_text(measured['mean'])}" if "mean" in measured else ""
        if cell.folder in self._lines:
            self._bars.update(
                self._lines[cell.folder], completed=rounds[-1]["round"], description=f"{_name(cell)}{mean}"
            )


def _name(cell: Cell) -> str:
    return f"{cell.label}, seed {cell.seed}"

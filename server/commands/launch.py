"""What all ways to run the app share: the run's folder, how it ended, and its progress on the console."""

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.flower.processes import PROJECT
from server.commands import left_out
from server.commands.tail import Tail

COMPLETED, FAILED = "finished:completed", "finished:failed"  # Flower's words


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    folder: Path
    status: str  # Flower's, such as "finished:completed"
    details: str  # the reason

    @property
    def completed(self) -> bool:
        """Whether the run reached its last round."""
        return self.status == COMPLETED

    @property
    def failure(self) -> str:
        """The message for a run that did not complete."""
        return f"run {self.folder.name} ended as {self.status}: {self.details}"


class Watch:
    """Shows a run on the console, as its metrics tell it: what it has read, what is left out, and a bar of rounds."""

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress, self._metrics = folder, progress, Tail(folder / "metrics.jsonl")
        self._metrics.read()  # of a resumed run: what it said before
        self._bar = progress.add_task(f"{folder.name}: starting", total=None)

    def look(self) -> list[dict[str, Any]]:
        """Show what is new; return the new events."""
        events = self._metrics.read()
        # a resumed run begins its file anew, with what it keeps of the old one
        begun = max((at for at, event in enumerate(events) if event["event"] == "start"), default=-1)
        for line in [*(_data_lines(self._folder) if begun >= 0 else ()), *left_out.lines(events[begun + 1 :])]:
            self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        rounds = [event for event in events if event["event"] == "round"]
        if rounds:
            last = rounds[-1]
            text = f"{self._folder.name}: round {last['round']}/{last['rounds']}"
            if last["accuracy"]:
                text += f", mean exit accuracy {100 * last['accuracy']['mean']:.1f} %"
            self._progress.update(self._bar, description=text, completed=last["round"], total=last["rounds"])
        return events


@contextmanager
def watched(folder: Path, show: bool) -> Iterator[Watch]:
    """Yield the watch of a run's folder, which may not exist yet; without `show` there is no bar."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, disable=not show) as progress:
        yield Watch(folder, progress)


def _data_lines(folder: Path) -> list[str]:
    """Return what a run that has started says of its data; nothing if it began with an older version."""
    with suppress(OSError, ValueError, KeyError):
        return [str(line) for line in json.loads((folder / "data.json").read_text())["lines"]]
    return []


def run_folder(overrides: Mapping[str, Any], root: Path) -> Path:
    """Return the folder of the resumed run, or of a new one below `run.root`, else below `root`."""
    if overrides.get("run.resume"):
        return Path(str(overrides["run.resume"]))
    return Path(str(overrides.get("run.root") or root)) / str(overrides["run.name"])


def commit() -> str:
    """Return the project's git commit; empty where git or its history is missing, as in an image."""
    if not (git := shutil.which("git")):
        return ""
    done = subprocess.run(
        [git, "-C", str(PROJECT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()

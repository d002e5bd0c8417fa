"""The report of a run and the comparison of runs: a self-contained HTML file each, made from run folders alone."""

from logging import WARNING
from pathlib import Path
from typing import TYPE_CHECKING

from flwr.supercore import log

from common.errors import UserError
from common.storage.files import write_text
from strategies.callbacks.base import Callback
from strategies.callbacks.report.comparison import write_comparison
from strategies.callbacks.report.page import run_page
from strategies.callbacks.report.records import load_run
from strategies.callbacks.report.svg import require_matplotlib

if TYPE_CHECKING:
    from strategies.engine.strategy import EarlyExitStrategy

__all__ = ["Report", "write_comparison", "write_report"]

FILE = "report.html"


class Report(Callback):
    """Writes `report.html` into the run folder at the end, also when the run failed. Comes after `RunFolder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_end(self, strategy: "EarlyExitStrategy", failure: str) -> None:
        """Write the report; a run does not fail when that fails."""
        try:
            write_report(self.folder)
        except Exception as error:  # of any kind: the model is there
            said = error if isinstance(error, UserError | OSError) else f"{type(error).__name__}: {error}"
            log(WARNING, "no report: %s", said)


def write_report(run_folder: Path) -> Path:
    """Write the report of a run folder into it and return its path.

    Raises `UserError` when the folder holds no run or matplotlib is missing.
    """
    require_matplotlib()
    path = run_folder / FILE
    write_text(path, run_page(load_run(run_folder)))
    return path

"""What commands read in a run's folder without torch, whose import takes seconds."""

import json
import time
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.storage.format import check_format

LOCK = ".lock"  # held by the process that writes
DATA = "data.json"  # what was read of the data set
BARE = {"checkpoints", LOCK, DATA}  # files of a run that was killed before it wrote its configuration


def default_name(strategy: str) -> str:
    """Return the name of a run that is given none: its method, unless that is unfit and thus refused, and the time."""
    prefix = strategy if strategy.isidentifier() and strategy.isascii() else "run"
    return f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}"


def refuse_taken(folder: Path) -> None:
    """Raise `UserError` if a folder holds a run."""
    if folder.is_dir() and {file.name for file in folder.iterdir()} - BARE:
        raise UserError(
            f"run.name {folder.name!r} is taken: {folder} already holds a run; choose another run.name, or continue "
            f"that run with --resume {folder} (run.resume)"
        )


def read_stored(folder: Path) -> dict[str, Any]:
    """Return the flat configuration of a stored run; raises `UserError` when the folder holds no run to continue."""
    file = folder / "config.toml"
    if not file.is_file():
        problem = "holds no config.toml, so no round of a run was begun there" if folder.is_dir() else "does not exist"
        raise UserError(f"run.resume: {folder} {problem}; give the folder of a run, such as runs/NAME")
    try:
        stored = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"run.resume: {file} cannot be read: {error}") from error
    check_format(folder, stored.pop("about", {}).get("format", 1))
    values = {f"{section}.{key}": value for section, values in stored.items() for key, value in values.items()}
    if values.pop("run.tensorboard", False):  # the key of a run that began before there were other trackers
        values["run.trackers"] = "tensorboard"
    return values


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a metrics file; a line that a kill cut short is left out."""
    events: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with suppress(json.JSONDecodeError):
            events.append(json.loads(line))
    return events

"""Folders of runs, caches and client states: beside Flower's home, so that all files stay in the project's folder."""

import argparse
import os
from pathlib import Path

from common.errors import UserError


def home() -> Path:
    """Return the folder that holds Flower's home (`FLWR_HOME`, default `~/.flwr`)."""
    return Path(os.environ.get("FLWR_HOME") or Path.home() / ".flwr").absolute().parent


def runs_root(configured: str) -> Path:
    """Return the folder of all runs."""
    return Path(configured) if configured else home() / "runs"


def cache_root() -> Path:
    """Return the folder of decoded data sets."""
    return home() / ".cache" / "earlybloom"


def store_root(configured: str, declared: object = None) -> Path:
    """Return the folder of clients' states; a node's own declaration (`state`) comes first."""
    return Path(str(declared or configured)) if declared or configured else home() / ".cache" / "clients"


def check_writable(folder: Path, remedy: str) -> None:
    """Make a folder; raises `UserError`, with the remedy, where this process cannot write there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = "" if os.access(folder, os.W_OK | os.X_OK) else "permission denied"
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        problem = getattr(error, "strerror", None) or str(error)
    if problem:
        raise UserError(f"{folder} cannot be written ({problem}): {remedy}")


def output_file(text: str) -> Path:
    """Return the file of an option, in a folder that is made; raises `argparse.ArgumentTypeError` if it cannot be."""
    file = Path(text)
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: name a file in it")
    try:
        check_writable(file.absolute().parent, "name a file in another folder")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return file

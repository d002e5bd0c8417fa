"""Answers of the commands that classify: accuracy, table and JSON file."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from common.errors import UserError
from common.storage.files import write_text


def accuracy(answers: Iterable[tuple[str | None, str | None]]) -> tuple[int, float | None]:
    """Return how many (label, truth) have a truth and the share of those that are right; None without any.

    A missing label counts as wrong.
    """
    right = [label == truth for label, truth in answers if truth is not None]
    return len(right), sum(right) / len(right) if right else None


def answer(label: str, truth: str | None) -> str:
    """Return a label as the table shows it, with the truth if they differ."""
    return label if truth in (None, label) else f"{label} (not {truth})"


def show(table: Table, lines: Iterable[str]) -> None:
    """Print a table and the closing lines."""
    console = Console()
    console.print(table)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def store(file: Path, content: dict[str, Any]) -> None:
    """Write JSON; raises `UserError` when the file cannot be written."""
    try:
        write_text(file, json.dumps(content, indent=1) + "\n")
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error}") from error

"""Clients and nodes that took no part in a run, with their reasons, as the run's metrics name them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from server.commands.tail import Tail

SHOWN = 20  # lines of a summary


def lines(events: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each event that says what is left out."""
    return [f"round {e['round']}: {e['name']} is left out: {e['reason']}" for e in events if e["event"] == "left_out"]


def summary(folder: Path) -> list[str]:
    """Return a line for each name and reason in a run's folder, with its rounds; [] without such a folder."""
    rounds: dict[tuple[str, str], list[int]] = {}
    for event in Tail(folder / "metrics.jsonl").read():
        if event["event"] == "left_out":
            rounds.setdefault((event["name"], event["reason"]), []).append(event["round"])
    found = [f"{name} was left out of {_rounds(numbers)}: {why}" for (name, why), numbers in rounds.items()]
    return found[:SHOWN] + ([f"and {len(found) - SHOWN} more, see {folder / 'metrics.jsonl'}"] if found[SHOWN:] else [])


def _rounds(numbers: list[int]) -> str:
    """Return "round 3" or "4 rounds from 3 to 9"."""
    if len(numbers) == 1:
        return f"round {numbers[0]}"
    return f"{len(numbers)} rounds from {numbers[0]} to {numbers[-1]}"

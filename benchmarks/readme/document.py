"""Tables in README.md: each between `<!-- table: NAME -->` and `<!-- end -->`, as the results have it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.readme import speed, students, training
from benchmarks.readme.cells import Read
from common.errors import UserError

README = Path(__file__).parents[2] / "README.md"
RESULTS = Path(__file__).parents[1] / "results"
TABLES: Mapping[str, Callable[[Read], str]] = {
    "deployment": speed.deployment,
    "accuracy_cifar10": training.accuracy_cifar10,
    "accuracy_digits": training.accuracy_digits,
    "personal": training.personal,
    "split": training.split,
    "distree": students.distree,
    "distree_policies": students.distree_policies,
    "exit_time": students.exit_time,
    "distree_network": students.distree_network,
    "streams": speed.streams,
    "simulation": speed.simulation,
}
# A table ends where its rows do: without its last marker it is not found, and no text after it can be lost.
PLACE = "(?P<start><!-- table: {name} -->\n)(?P<rows>(?:[|].*\n)*)(?P<end><!-- end -->)"


def read_results(name: str) -> dict[str, Any]:
    """Return what a results file holds."""
    result: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return result


def stale(text: str, read: Read = read_results) -> Iterator[str]:
    """Yield the names of the tables that `text` has otherwise than the results; raises UserError as `rendered` does."""
    for name, render in TABLES.items():
        if _place(text, name)["rows"] != render(read):
            yield name


def rendered(text: str, read: Read = read_results) -> str:
    """Return `text` with every table as the results have it; raises UserError if one has not exactly one place."""
    for name, render in TABLES.items():
        place = _place(text, name)
        text = text[: place.start("rows")] + render(read) + text[place.end("rows") :]
    return text


def _place(text: str, name: str) -> re.Match[str]:
    places = list(re.finditer(PLACE.format(name=name), text))
    if len(places) != 1:
        raise UserError(
            f"README has {len(places)} places for table {name}: write its rows, once, right between "
            f"<!-- table: {name} --> and <!-- end -->"
        )
    return places[0]

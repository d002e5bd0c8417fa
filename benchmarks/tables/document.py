"""The documents that show measurements: README's tables between marks, and `benchmarks/RESULTS.md` as a whole.

README has each table between `<!-- table: NAME -->` and `<!-- end -->`. RESULTS.md is written from `results.md` beside
this file, which names figures and tables as `{{topic.name}}`.
"""

import json
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.tables import (
    baselines,
    cafedistill,
    containers,
    darkdistill,
    device_time,
    distree,
    distree_serving,
    hetero_splitee,
    onnx,
    speed,
)
from benchmarks.tables.cells import Figures, Read
from benchmarks.tables.methods import methods
from common.errors import UserError

PROJECT = Path(__file__).parents[2]
README, RESULTS = PROJECT / "README.md", PROJECT / "benchmarks" / "RESULTS.md"
TEMPLATE = Path(__file__).with_name("results.md")
MEASURED = PROJECT / "benchmarks" / "results"
TABLES: Mapping[str, Callable[[Read], str]] = {"methods": methods}  # README's
TOPICS: Mapping[str, Callable[[Read], Figures]] = {
    "darkdistill": darkdistill.figures,
    "baselines": baselines.figures,
    "cafedistill": cafedistill.figures,
    "hetero_splitee": hetero_splitee.figures,
    "distree": distree.figures,
    "distree_serving": distree_serving.figures,
    "speed": speed.figures,
    "onnx": onnx.figures,
    "device_time": device_time.figures,
    "docker": containers.figures,
}
# A table ends where its rows do: without its last mark it is not found, and no text after it can be lost.
PLACE = "(?P<start><!-- table: {name} -->\n)(?P<rows>(?:[|].*\n)*)(?P<end><!-- end -->)"
FIELD = re.compile(r"\{\{(?P<name>[^{}]*)\}\}")
WIDTH = 119
AS_IT_IS = ("#", "|")  # the first characters of blocks that are not filled


def read_results(name: str) -> dict[str, Any]:
    """Return what a results file holds."""
    result: dict[str, Any] = json.loads((MEASURED / f"{name}.json").read_text())
    return result


def stale(text: str, read: Read = read_results) -> Iterator[str]:
    """Yield the names of README's tables that differ from the results; raises UserError as `rendered` does."""
    for name, render in TABLES.items():
        if _place(text, name)["rows"] != render(read):
            yield name


def rendered(text: str, read: Read = read_results) -> str:
    """Return README with every table as the results have it; raises UserError if one has not exactly one place."""
    for name, render in TABLES.items():
        place = _place(text, name)
        text = text[: place.start("rows")] + render(read) + text[place.end("rows") :]
    return text


def results(template: str, read: Read = read_results) -> str:
    """Return RESULTS.md; raises UserError if the template names an unknown figure, or leaves one out."""
    figures = {f"{topic}.{name}": text for topic, render in TOPICS.items() for name, text in render(read).items()}
    named = {match["name"] for match in FIELD.finditer(template)}
    if named != figures.keys():
        unknown, unused = sorted(named - figures.keys()), sorted(figures.keys() - named)
        raise UserError(f"{TEMPLATE.name} names unknown figures {unknown} and leaves out {unused}")
    filled = FIELD.sub(lambda match: figures[match["name"]].rstrip("\n"), template)
    return "\n\n".join(map(_fill, filled.strip("\n").split("\n\n"))) + "\n"


def _fill(block: str) -> str:
    """Return a paragraph, or the items of a list, in lines of even length: figures have other lengths than names."""
    if block.startswith(AS_IT_IS):
        return block
    listed = block.startswith("- ")
    wrapper = textwrap.TextWrapper(WIDTH, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = "  " if listed else ""
    return "\n".join(map(wrapper.fill, block.splitlines() if listed else [block]))


def _place(text: str, name: str) -> re.Match[str]:
    places = list(re.finditer(PLACE.format(name=name), text))
    if len(places) != 1:
        raise UserError(
            f"README has {len(places)} places for table {name}: write its rows, once, right between "
            f"<!-- table: {name} --> and <!-- end -->"
        )
    return places[0]

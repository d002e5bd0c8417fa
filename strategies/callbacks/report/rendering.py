"""Fills the page templates in `templates/`."""

from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

# The templates are HTML. Their names end in .md because Flower's app file (FAB) takes no .html, and Markdown is the one
# format it takes in which HTML is valid text. Autoescape is on for every name: run names, reasons and metric names come
# from users and from the network.
_ENVIRONMENT = Environment(
    loader=PackageLoader("strategies.callbacks.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True)
class Table:
    """A table of plain texts; the first column names the row."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = False  # the other columns hold numbers


def render(template: str, **values: object) -> str:
    """Return a page; every text in `values` is escaped. Raises `jinja2.UndefinedError` for a value that is missing."""
    return _ENVIRONMENT.get_template(template).render(values)

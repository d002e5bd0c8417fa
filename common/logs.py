"""Logs as text or, with `run.log-format="json"`, as one JSON object per line with its run, round and node.

Flower's handlers stay in place, because Flower redirects them; only the form of their lines changes.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from flwr.app import RecordDict
from flwr.supercore.logger import ConsoleHandler

from common.messages.header import ORDER, record_text

FORMATS = ("text", "json")
NODE_ID = "node-id"  # key of Flower's id of a node, added to its node configuration
FIELDS = ("run", "round", "node")
_context: ContextVar[Mapping[str, Any] | None] = ContextVar("log_context", default=None)
_process: dict[str, Any] = {}  # fields for threads without a context of their own, such as the server's for streams


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON: time (UTC), level, run, round, node, message, and an error's traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; an unknown run, round or node is null."""
        found = _context.get()
        known = _process if found is None else found
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            **{field: known.get(field) for field in FIELDS},
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def use(form: str) -> None:
    """Make Flower's logger write in this form, one of `FORMATS`."""
    for handler in logging.getLogger("flwr").handlers:
        if isinstance(handler, ConsoleHandler):
            handler.json = form == "json"  # leaves out Flower's empty lines
        if form == "json":
            # Flower's handler ignores formatters
            handler.format = JsonFormatter().format  # type: ignore[method-assign]
        else:
            vars(handler).pop("format", None)


@contextmanager
def context(*, everywhere: bool = False, **fields: Any) -> Iterator[None]:
    """Add run, round or node to the lines logged inside; `everywhere` includes threads without a context."""
    token, before = _context.set({**(_context.get() or {}), **fields}), dict(_process)
    if everywhere:
        _process.update(fields)
    try:
        yield
    finally:
        _context.reset(token)
        if everywhere:
            _process.clear()
            _process.update(before)


@contextmanager
def of_message(content: RecordDict, node: Mapping[str, object]) -> Iterator[None]:
    """Log inside in the form of the message's run, with its run and round; an unreadable message logs plain text."""
    try:
        order = json.loads(record_text(content, ORDER))
        form = json.loads(order["config"]).get("run.log-format")
        fields = {"run": order["run"], "round": order.get("round")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        form, fields = "text", {}
    use(form)
    with context(node=node.get(NODE_ID), **fields):
        yield

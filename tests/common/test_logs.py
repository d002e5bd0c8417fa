import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime
from logging import INFO, WARNING
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.supercore import log

from client.app import app
from common import logs
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import Order
from server.app import app as server_app
from strategies.configuration import read_config
from strategies.node.local_training import LocalTraining


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """Yield the stream to which Flower's console handler writes."""
    (handler,) = (h for h in logging.getLogger("flwr").handlers if type(h).__name__ == "ConsoleHandler")
    stream = io.StringIO()
    before = handler.setStream(stream)  # type: ignore[attr-defined]
    yield stream
    logs.use("text")
    handler.setStream(before)  # type: ignore[attr-defined]


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_line_has_time_level_message_run_round_and_node(written):
    logs.use("json")
    log(INFO, "before")
    log(INFO, "")  # as Flower writes between parts
    with logs.context(run="r", node="server"), logs.context(round=3):
        log(WARNING, '%s\nand "more"', "über")
    log(INFO, "after")
    first, second, third = lines(written)
    assert list(first) == ["time", "level", "run", "round", "node", "message"]
    assert (first["run"], first["round"], first["node"], first["message"]) == (None, None, None, "before")
    assert datetime.fromisoformat(second.pop("time")).utcoffset().total_seconds() == 0
    assert second == {"level": "WARNING", "run": "r", "round": 3, "node": "server", "message": 'über\nand "more"'}
    assert third["run"] is None


def test_traceback_is_part_of_its_line(written):
    logs.use("json")
    try:
        raise ValueError("no")
    except ValueError as error:
        log(WARNING, "it failed", exc_info=error)
    (line,) = lines(written)
    assert line["message"] == "it failed"
    assert line["error"].startswith("Traceback")
    assert line["error"].endswith("ValueError: no")


def test_text_form_is_flowers_own(written):
    logs.use("text")
    log(INFO, "plain")
    before = written.getvalue()
    logs.use("json")
    logs.use("text")
    log(INFO, "plain")
    assert written.getvalue() == 2 * before
    assert "plain" in before
    assert not before.startswith("{")


def test_threads_log_the_fields_set_everywhere(written):
    logs.use("json")

    def talk() -> None:
        log(INFO, "from a thread")

    with logs.context(run="r", node="server", everywhere=True), logs.context(node="7", round=1):
        thread = threading.Thread(target=talk)
        thread.start()
        thread.join()
        log(INFO, "from here")
    thread = threading.Thread(target=talk)
    thread.start()
    thread.join()
    assert [(line["run"], line["round"], line["node"]) for line in lines(written)] == [
        ("r", None, "server"), ("r", 1, "7"), (None, None, None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "record", [None, {"json": "{"}, {"json": "[]"}, {"json": '{"run": "r"}'}, {"json": "[" * 10**5}]
)
def test_unreadable_message_does_not_stop_logging(written, record):
    content = RecordDict({} if record is None else {"order": ConfigRecord(record)})
    logs.use("json")
    with logs.of_message(content, {"node-id": "5"}):
        log(INFO, "here")
    assert "here" in written.getvalue()
    assert not written.getvalue().startswith("{")


def test_message_sets_the_form_of_its_node(written):
    for form in ("json", "text"):
        order = Order("some-run", json.dumps({"run.log-format": form}), round=6)
        with logs.of_message(protocol.pack_order(order), {"node-id": "12345"}):
            log(INFO, "here")
    first, second = written.getvalue().splitlines()
    line = json.loads(first)
    assert (line["run"], line["round"], line["node"]) == ("some-run", 6, "12345")
    assert not second.startswith("{")


def test_run_logs_every_line_as_json(written, flat, tmp_path, monkeypatch):
    train = LocalTraining.train

    def fail(self, job):
        if job.client == 3 and job.round == 2:
            raise RuntimeError("no memory")
        return train(self, job)

    monkeypatch.setattr(LocalTraining, "train", fail)
    settings = {**flat, "run.root": str(tmp_path / "runs"), "run.log-format": "json", "run.name": "logged"}
    grid = LocalGrid(app, [{"partition-id": p} for p in range(2)])
    server_app(grid, Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=settings))
    logged = lines(written)
    assert {line["run"] for line in logged} == {"logged"}
    (failed,) = (line for line in logged if line["message"] == "client 3 failed")
    assert failed["node"] in {str(node) for node in grid.get_node_ids()}
    assert (failed["round"], failed["level"]) == (2, "WARNING")
    assert failed["error"].endswith("RuntimeError: no memory")
    rounds = [line for line in logged if line["message"].startswith("round ")]
    assert {(line["node"], line["round"]) for line in rounds} == {("server", 1), ("server", 2)}
    assert any(line["message"].startswith("round 2/2") and line["round"] == 2 for line in rounds)


def test_unknown_log_format_is_refused(flat):
    assert read_config(flat).run.log_format == "text"
    with pytest.raises(UserError, match=r"run.log-format is 'xml', must be one of text, json"):
        read_config({**flat, "run.log-format": "xml"})


def test_logs_need_no_torch():
    code = "import sys; import common.logs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

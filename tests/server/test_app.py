"""The ServerApp refuses wrong configurations before anything starts, and raises if a run fails."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

import server.app
from client.app import app as client_app
from common.config import Value
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.storage.run_files import read_events
from server.app import app
from server.execution import prepare
from strategies.callbacks.trackers.table import Table
from strategies.callbacks.trackers.tensorboard import TensorBoard
from strategies.engine.rounds import QuorumError


@pytest.fixture
def settings(flat: dict[str, Value], tmp_path: Path) -> dict[str, Value]:
    return {**flat, "run.root": str(tmp_path / "runs")}


def start(settings: dict[str, Value], client: Any = client_app) -> None:
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(settings))
    app(LocalGrid(client, [{"partition-id": 0}]), context)


def never(message: Any, context: Any) -> Any:
    raise AssertionError("a client got a message")


def test_importing_the_apps_does_not_import_torch():
    script = "import sys, server.app, client.app; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_workers_are_prepared_in_flowers_simulation_only(settings, monkeypatch):
    prepared: list[bool] = []
    monkeypatch.setattr(server.app, "prepare_workers", lambda: prepared.append(True))
    for program in ("/bin/flwr-serverapp", "/bin/flwr-simulation"):
        assert not prepared
        monkeypatch.setattr(sys, "argv", [program])
        with pytest.raises(UserError):
            start({**settings, "run.rounds": 0}, never)
    assert prepared


def test_app_reports_all_mistakes_before_anything_starts(settings, flower_log):
    wrong = {
        "run.rounds": 0, "train.lr": "fast", "clients.per-round": 7, "round.quorum": 1.5, "darkdistill.matcher": "best",
        "clients.devise": "cpu", "server.device": "tpu",
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        start({**settings, **wrong}, never)
    text = str(caught.value)
    assert text.splitlines()[0] == "the configuration has mistakes:"
    assert len(text.splitlines()) == 1 + len(wrong)
    for part in ("run.rounds is 0", "train.lr is 'fast'", "clients.per-round is 7", "round.quorum", "matcher is 'best'",
                 "clients.devise is unknown", "server.device is 'tpu'"):  # fmt: skip
        assert part in text
    assert text in flower_log
    assert not Path(settings["run.root"]).exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "cifar10", "data.root": "/nowhere/cifar10"}, "/nowhere/cifar10"),
        ({"run.strategy": "magic"}, "mistakes:\n  - run.strategy is 'magic'"),
        ({"network.name": "alexnet"}, "mistakes:\n  - network.name is 'alexnet'"),
        ({"clients.mix": "0.5,0.5"}, "mistakes:\n  - clients.mix '0.5,0.5'"),
        ({"run.name": "a/b"}, "mistakes:\n  - run.name is 'a/b'"),
        ({"fedprox.mu": 0.1}, "mistakes:\n  - fedprox.mu is 0.1, but run.strategy eefl does not read it"),
        ({"run.resume": "/nowhere"}, "run.resume: /nowhere does not exist"),
    ],
)
def test_app_reports_one_mistake_in_one_sentence(settings, flower_log, changes, message):
    with pytest.raises(UserError) as caught:
        start({**settings, **changes}, never)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == message.count("\n") + 1
    assert str(caught.value) in flower_log
    assert not Path(settings["run.root"]).exists()


def test_app_raises_and_records_a_missed_quorum(settings):
    failing = {0, 1, 2, 3}

    def client(message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train" and context.node_config["partition-id"] in failing:
            raise RuntimeError("no power")
        return client_app(message, context)

    grid = LocalGrid(client, [{"partition-id": p} for p in range(6)])
    with pytest.raises(QuorumError, match=r"round 1: 2 of 6 clients answered.*run\.resume.*no power"):
        prepare({**settings, "clients.per-node": 1}).start(grid)
    folder = Path(settings["run.root"]) / "test"
    events = read_events(folder / "metrics.jsonl")
    assert [event["event"] for event in events] == ["start", *4 * ["left_out"], "end"]
    assert {event["name"] for event in events[1:-1]} == {f"client {client}" for client in failing}
    assert "2 of 6 clients answered" in events[-1]["failure"]
    assert not (folder / "final").exists()
    # the run can be resumed when the clients are back
    failing.clear()
    resumed = prepare({"run.resume": str(folder)})
    resumed.start(grid)
    assert resumed.round == 2
    assert read_events(folder / "metrics.jsonl")[-1]["failure"] == ""


def test_app_names_a_run_after_its_method_and_time(settings):
    strategy = prepare({**settings, "run.name": ""})
    assert strategy.config.run.name.startswith("eefl-2")
    assert [path.name for path in Path(settings["run.root"]).iterdir()] == [strategy.config.run.name]


def test_app_has_trackers_on_request(settings):
    pytest.importorskip("tensorboard")
    *others, table, board = prepare({**settings, "run.trackers": "csv,tensorboard"}).callbacks
    assert [type(tracker.tracker) for tracker in (table, board)] == [Table, TensorBoard]
    assert [type(c) for c in others] == [type(c) for c in prepare({**settings, "run.name": "without"}).callbacks]

"""What all ways to run the app share."""

import json
from pathlib import Path

import pytest

from server.commands import launch
from server.commands.launch import Outcome, run_folder, watched

ROUND = {"event": "round", "round": 3, "rounds": 4, "accuracy": {"mean": 0.5}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "runs" / "x"
    made.mkdir(parents=True)
    return made


def write(folder: Path, *events: object, more: str = "") -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events) + more)


def test_watch_returns_new_events_and_shows_the_last_round(folder):
    with watched(folder, show=True) as watch:
        (task,) = watch._progress.tasks
        assert watch.look() == []
        assert (task.description, task.total) == ("x: starting", None)
        write(folder, {"event": "start"}, ROUND, more='{"event": "rou')
        assert [event["event"] for event in watch.look()] == ["start", "round"]
        (task,) = watch._progress.tasks
        assert (task.description, task.completed, task.total) == ("x: round 3/4, mean exit accuracy 50.0 %", 3, 4)
        assert watch.look() == []


def left_out(round_: int, name: str) -> dict[str, object]:
    return {"event": "left_out", "round": round_, "name": name, "reason": "no samples"}


@pytest.mark.parametrize("show", [True, False])
def test_watch_shows_what_a_started_run_has_read(folder, capsys, show):
    (folder / "data.json").write_text(json.dumps({"lines": ["data digits: 8 train", "  note: [2] are left out"]}))
    with watched(folder, show) as watch:
        write(folder, {"event": "start"}, left_out(1, "client 3"))
        watch.look()
    lines = "data digits: 8 train\n  note: [2] are left out\nround 1: client 3 is left out: no samples\n"
    assert lines in capsys.readouterr().out


def test_watch_of_a_resumed_run_shows_what_is_new(folder, capsys):
    kept = [{"event": "start"}, left_out(1, "client 3")]
    write(folder, *kept, {"event": "end"})
    with watched(folder, show=False) as watch:
        assert watch.look() == []
        (folder / "metrics.jsonl").rename(folder / "replaced")  # with which its inode stays taken
        write(folder, *kept, {"event": "start"}, left_out(2, "client 4"))
        assert [event["event"] for event in watch.look()] == ["start", "left_out"] * 2
    assert capsys.readouterr().out == "round 2: client 4 is left out: no samples\n"


def test_folder_is_that_of_the_resumed_run_then_of_run_root(tmp_path):
    assert run_folder({"run.name": "a"}, tmp_path) == tmp_path / "a"
    assert run_folder({"run.name": "a", "run.root": "/kept"}, tmp_path) == Path("/kept/a")
    assert run_folder({"run.name": "a", "run.resume": "/old/b"}, tmp_path) == Path("/old/b")


def test_only_flowers_word_for_it_counts_as_completed(tmp_path):
    assert Outcome(tmp_path / "a", "finished:completed", "").completed
    stopped = Outcome(tmp_path / "a", "finished:stopped", "by a user")
    assert not stopped.completed
    assert stopped.failure == "run a ended as finished:stopped: by a user"


def test_commit_is_empty_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.commit() == ""

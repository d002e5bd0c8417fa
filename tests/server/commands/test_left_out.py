"""Lines about clients that took no part: one each as it happens, and a summary."""

import json

from server.commands.left_out import lines, summary


def event(round_: int, name: str, reason: str = "nothing fits") -> dict[str, object]:
    return {"event": "left_out", "round": round_, "name": name, "reason": reason}


def test_lines_name_round_client_and_reason():
    events = [{"event": "round", "round": 1}, event(2, "client 3")]
    assert lines(events) == ["round 2: client 3 is left out: nothing fits"]


def test_summary_joins_rounds_of_one_reason(tmp_path):
    events = [event(1, "client 3"), event(2, "client 3"), event(4, "client 3"), event(2, "node 7", "gone")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events))
    assert summary(tmp_path) == [
        "client 3 was left out of 3 rounds from 1 to 4: nothing fits",
        "node 7 was left out of round 2: gone",
    ]


def test_summary_names_what_it_does_not_show(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(event(1, f"client {n}")) + "\n" for n in range(25)))
    assert len(summary(tmp_path)) == 21
    assert summary(tmp_path)[-1] == f"and 5 more, see {tmp_path / 'metrics.jsonl'}"


def test_folder_that_is_not_there_has_no_summary(tmp_path):
    assert summary(tmp_path / "gone") == []

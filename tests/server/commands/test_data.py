"""`python -m server data`: what a run would read."""

import json

from server.__main__ import main


def test_data_shows_classes_clients_and_notes(cases_root, capsys):
    keys = ["data.name=text", f"data.root={cases_root / 'csv_space_labels'}", "clients.count=8"]
    arguments = [part for key in keys for part in ("-c", key)]
    assert main(["data", *arguments]) == 0
    shown = capsys.readouterr().out
    assert "8 clients: least 4, median 4.5, most 5 samples" in shown
    assert "note: column 'label': 6 values have blanks at their ends" in shown
    assert [word for word in ("politics", "sport", "all", "train", "test") if word not in shown] == []
    assert main(["data", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"]["train"] == [2, 16, 18]


def test_data_refuses_what_a_run_refuses(cases_root, capsys):
    assert main(["data", "-c", "data.name=folder", "-c", f"data.root={cases_root / 'pq_shard_missing'}"]) == 2
    assert "1 of the 3 shards of 'train' are absent" in capsys.readouterr().err

"""The tracker that writes CSV."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from strategies.callbacks.trackers.table import Table
from tests.strategies.callbacks.samples import client_record, final_record, record


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_row_per_round_with_every_number(tmp_path: Path, strategy: Any) -> None:
    table = Table(tmp_path)
    table.on_start(strategy)
    table.on_round(strategy, record(1))
    table.on_round(strategy, final_record(2))
    first, second = rows(tmp_path)
    assert (first["round"], float(first["accuracy/mean"]), first["accuracy/calibrated"]) == ("1", 0.15, "")
    assert (second["round"], second["accuracy/calibrated"]) == ("2", "0.58")


def test_resumed_run_keeps_earlier_rows_and_replaces_repeated_ones(tmp_path: Path, strategy: Any) -> None:
    killed = Table(tmp_path)
    for round_ in (1, 2, 3):
        killed.on_round(strategy, record(round_))
    strategy.round = 1
    resumed = Table(tmp_path)
    resumed.on_start(strategy)
    resumed.on_round(strategy, client_record(2))
    assert [row["round"] for row in rows(tmp_path)] == ["1", "2"]
    assert rows(tmp_path)[1]["client-accuracy/tuned"] != ""


def test_resumed_run_has_the_round_that_a_kill_kept_out_of_the_table(
    make_run: Callable[..., Path], strategy: Any
) -> None:
    folder = make_run(records=[record(1), client_record(2), record(3)])
    Table(folder).on_round(strategy, record(1))
    strategy.round = 2
    resumed = Table(folder)
    resumed.on_start(strategy)
    resumed.on_round(strategy, record(3))
    whole = Table(folder.parent)
    for finished in (record(1), client_record(2), record(3)):
        whole.on_round(strategy, finished)
    assert rows(folder) == rows(folder.parent)


def test_new_run_does_not_take_over_an_old_file(tmp_path: Path, strategy: Any) -> None:
    (tmp_path / "metrics.csv").write_text("round\n1\n")
    strategy.round = 0
    table = Table(tmp_path)
    table.on_start(strategy)
    table.on_round(strategy, record(1))
    assert len(rows(tmp_path)) == 1

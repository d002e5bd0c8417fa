from collections.abc import Callable
from pathlib import Path

import pytest

from strategies.callbacks.report.device_time import device_facts, device_plots, part_seconds
from strategies.callbacks.report.page import run_page
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import client_record, device_time, record

pytest.importorskip("matplotlib")
MakeRun = Callable[..., Path]


def test_times_are_read_from_the_rounds(make_run: MakeRun) -> None:
    run = load_run(make_run(records=[record(n, device=device_time(n)) for n in (1, 2)]))
    assert run.device_totals == {1: 4.0, 2: 8.0}
    assert (run.device_seconds, run.clock, run.energy) == (8.0, "simulated", 60.0)
    assert part_seconds(run) == {1: (0.75, 0.25, 3.0), 2: (3.0, 1.0, 0.0)}  # a client's, in a round
    assert device_facts(run) == {"device time": "8.0 s", "energy on devices": "60.0 J"}


def test_page_shows_accuracy_over_device_time_and_idle_time(make_run: MakeRun) -> None:
    page = run_page(load_run(make_run(records=[record(n, device=device_time(n, 2500.0)) for n in (1, 2)])))
    for text in ("Accuracy against device time", "seconds on the devices, simulated", "Time on the devices",
                 "75.0 % idle", "0.0 % idle", "<dt>device time</dt>", "5.0 kJ"):  # fmt: skip
        assert text in page, text


def test_energy_that_one_round_lacks_is_not_shown(make_run: MakeRun) -> None:
    run = load_run(make_run(records=[record(1, device=device_time(1)), record(2, device=device_time(2, None))]))
    assert run.energy is None
    assert "energy" not in run_page(run)


def test_clients_accuracies_are_shown_over_device_time(make_run: MakeRun) -> None:
    run = load_run(make_run(records=[client_record(1, device=device_time(1, clock="measured"))]))
    assert [plot.title for plot in device_plots(run)] == ["Accuracy against device time", "Time on the devices"]
    assert "seconds on the devices, measured" in run_page(run)


def test_run_of_an_older_version_has_no_device_time(make_run: MakeRun) -> None:
    folder = make_run()
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace(', "device": {}', ""))
    run = load_run(folder)
    assert not any("device" in event for event in run.rounds)
    assert (run.device_totals, run.device_seconds, run.energy, device_plots(run), device_facts(run)) == (
        {},
        0,
        None,
        [],
        {},
    )
    assert "device time" not in run_page(run)

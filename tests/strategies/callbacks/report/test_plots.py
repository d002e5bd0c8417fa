from collections.abc import Callable
from pathlib import Path

import pytest

from strategies.callbacks.report.plots import run_plots, seconds_plot, term_lines, term_plots
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import record

pytest.importorskip("matplotlib")
MakeRun = Callable[..., Path]


def test_completed_run_has_all_plots(make_run: MakeRun) -> None:
    plots = {plot.title: plot for plot in run_plots(load_run(make_run()))}
    assert list(plots) == ["Accuracy per exit", "Accuracy against cost", "Tier mix", "Traffic", "Time per round"]
    assert plots["Traffic"].note == "9.0 MB down and 3.0 MB up in all"
    for text in ("exit 1", "exit 2", "mean"):
        assert f">{text}</text>" in plots["Accuracy per exit"].svg
    for text in ("budgeted", "calibrated", "all samples at one exit"):
        assert f">{text}</text>" in plots["Accuracy against cost"].svg


def test_plots_without_data_are_left_out(make_run: MakeRun) -> None:
    unfinished = load_run(make_run("unfinished", records=[record(1)]))
    assert "Accuracy against cost" not in [plot.title for plot in run_plots(unfinished)]
    unevaluated = load_run(make_run("unevaluated", records=[record(1, accuracy={})]))
    assert [plot.title for plot in run_plots(unevaluated)] == ["Tier mix", "Traffic", "Time per round"]
    assert run_plots(load_run(make_run("empty", records=[]))) == []


def test_time_outside_all_phases_is_shown_as_other(make_run: MakeRun) -> None:
    svg = seconds_plot(load_run(make_run())).svg
    assert all(f">{phase}</text>" in svg for phase in ("clients", "server", "other"))
    assert ">round</text>" in svg  # the axis alone: the whole round is not stacked onto its phases
    assert svg.count(">round</text>") == 1


def test_numbered_terms_share_a_plot_and_lists_are_left_out(make_run: MakeRun) -> None:
    records = [record(1), record(2, terms={"generator-1-label": 0.5, "distill-1-2-loss": 3.0, "on": True})]
    run = load_run(make_run(records=records))
    assert term_lines(run, "terms") == {
        "generator label": {"1": ([1, 2], [1.0, 0.5]), "2": ([1], [2.0])},
        "distill loss": {"1-2": ([2], [3.0])},
    }
    assert [plot.title for plot in term_plots(run)] == ["clients: loss", "generator label", "distill loss"]

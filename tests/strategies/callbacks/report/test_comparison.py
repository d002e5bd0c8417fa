from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from strategies.callbacks.report import write_comparison
from strategies.callbacks.report.comparison import comparison_plots, comparison_rows, text_table
from strategies.callbacks.report.measures import Group
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import client_record, client_summary, device_time, final_record, record

MakeRun = Callable[..., Path]


def alone(*folders: Path) -> list[Group]:
    """Return a group of one run for each folder, named by its method."""
    runs = [load_run(folder) for folder in folders]
    return [Group(run.strategy, {1: run}) for run in runs]


def test_table_has_a_column_per_group(make_run: MakeRun) -> None:
    three = {"exits": [0.2, 0.4, 0.9], "mean": 0.5}
    groups = alone(make_run("a"), make_run("b", strategy="fedavg", records=[record(1, accuracy=three)]))
    assert text_table(comparison_rows(groups)) == "\n".join(
        [
            "                      eefl  fedavg",
            "----------------------------------",
            "mean of exits       45.0 %  50.0 %",
            "  points over eefl           +5.00",
            "exit 1              30.0 %  20.0 %",
            "exit 2              60.0 %  40.0 %",
            "exit 3                   -  90.0 %",
            "calibrated          58.0 %       -",
            "  million MACs       3.000       -",
            "rounds                   3       1",
            "left out                 0       0",
            "time                 6.0 s   2.0 s",
            "bytes down          9.0 MB  3.0 MB",
            "bytes up            3.0 MB  1.0 MB",
        ]
    )


def test_clients_evaluation_has_its_own_rows(make_run: MakeRun) -> None:
    both = [final_record(1), record(2, client_accuracy=client_summary())]
    groups = alone(make_run("a", records=[client_record(1)]), make_run("b", strategy="fedavg", records=both),
                   make_run("c", strategy="local", records=[record(1)]))  # fmt: skip
    assert text_table(comparison_rows(groups)).splitlines()[2:-5] == [
        "mean of exits             60.0 %   30.0 %  15.0 %",
        "  of samples of the      clients   server  server",
        "  points over eefl                      -       -",
        "exit 1                    50.0 %   20.0 %  10.0 %",
        "exit 2                    70.0 %   40.0 %  20.0 %",
        "calibrated                     -   58.0 %       -",
        "  million MACs                 -    3.000       -",
        "on clients                60.0 %   60.0 %       -",
        "  spread over them        10.0 %   10.0 %       -",
        "  sampled at least once   70.0 %   70.0 %       -",
        "  majority class          30.0 %   30.0 %       -",
        "  tuned                   60.0 %   60.0 %       -",
        "  MACs saved              37.5 %   37.5 %       -",
        "  loss allowed           1 point  1 point       -",
    ]


def test_device_time_has_a_row_and_a_plot_where_a_run_has_it(make_run: MakeRun) -> None:
    timed = [replace(record(n), device=device_time(n)) for n in (1, 2)]
    groups = alone(make_run("a"), make_run("b", strategy="fedavg", records=timed))
    assert text_table(comparison_rows(groups)).splitlines()[-4:-1] == [
        "time                 6.0 s   4.0 s",
        "device time              -   8.0 s",
        "bytes down          9.0 MB  6.0 MB",
    ]
    assert "Mean exit accuracy over device time" in [plot.title for plot in comparison_plots(groups)]
    assert not any("device time" in plot.title for plot in comparison_plots(groups[:1]))


def test_group_over_seeds_shows_deviations_and_the_paired_gain(make_run: MakeRun) -> None:
    def group(label: str, *accuracies: float) -> Group:
        measured = [{"exits": [a - 0.1, a + 0.1], "mean": a} for a in accuracies]
        folders = [make_run(f"{label}{n}", records=[record(1, accuracy=m)]) for n, m in enumerate(measured)]
        return Group(label, {seed: load_run(folder) for seed, folder in enumerate(folders, start=1)})

    rows = comparison_rows([group("a", 0.5, 0.6, 0.7), group("b", 0.52, 0.61, 0.73)])
    assert rows[1:4] == [
        ["mean of exits", "60.0 ± 10.0 %", "62.0 ± 10.5 %"],
        ["  points over a", "", "+2.00 ± 1.00"],
        ["  95 % interval", "", "-0.48 to +4.48"],  # 4.3027 * 1.00 / sqrt(3)
    ]
    assert rows[-1] == ["seeds", "3", "3"]


def test_accuracies_of_other_samples_have_no_gain(make_run: MakeRun) -> None:
    rows = comparison_rows(alone(make_run("a", records=[record(1)]), make_run("b", records=[client_record(1)])))
    assert rows[2:4] == [["  of samples of the", "server", "clients"], ["  points over eefl", "", "-"]]


def test_columns_that_do_not_fit_follow_below() -> None:
    assert text_table([["", "aa", "bb", "cc"], ["row", "1", "2", "3"]], width=11) == "\n".join(
        ["     aa  bb", "-----------", "row   1   2", "", "     cc", "-------", "row   3"]
    )


def test_page_has_all_runs_in_common_plots(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    groups = alone(make_run("a"), make_run("b", strategy="fedavg"), make_run("c", strategy="none", records=[]))
    path = write_comparison({"": groups}, tmp_path / "comparison.html")
    page = path.read_text()
    assert page.count("<svg") == 4
    assert all(page.count(f">{name}</text>") == 4 for name in ("eefl", "fedavg"))
    assert "<th>mean of exits</th>" in page


def test_page_shows_markup_in_run_names_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = '<script>alert(1)</script> & "x"'
    groups = [Group(label, {1: load_run(make_run(label))}) for label in (name, "b")]
    page = write_comparison({"": groups}, tmp_path / "comparison.html").read_text()
    shown = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; "
    assert "<script" not in page
    assert f'<p class="soft">{shown}&#34;x&#34;, b</p>' in page
    assert f'<th class="number">{shown}&#34;x&#34;</th>' in page
    assert page.count(f'>{shown}"x"</text>') == 4


def test_plots_need_evaluations_and_cost_curves(make_run: MakeRun) -> None:
    pytest.importorskip("matplotlib")
    unfinished = alone(make_run("a", records=[record(1)]))
    assert [plot.title for plot in comparison_plots(unfinished)] == [
        "Mean exit accuracy over rounds",
        "Final accuracy per exit",
        "Mean exit accuracy over time",
    ]
    assert comparison_plots(alone(make_run("b", records=[record(1, accuracy={})]))) == []
    every_other = alone(make_run("c", records=[record(1, accuracy={}), final_record(2)]))
    assert len(comparison_plots(every_other)) == 4
    on_clients = alone(make_run("d", records=[client_record(1), client_record(2)]))
    plots = comparison_plots([*on_clients, *unfinished])
    assert [plot.title for plot in plots][3:] == ["Inference cost against accuracy on the clients"]

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import UserError
from strategies.callbacks.report import compare_runs, write_comparison
from strategies.callbacks.report.comparison import comparison_plots, labels
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import client_record, client_summary, device_time, final_record, record

MakeRun = Callable[..., Path]


def test_table_has_a_column_per_run(make_run: MakeRun) -> None:
    three = {"exits": [0.2, 0.4, 0.9], "mean": 0.5}
    folders = [make_run("a"), make_run("b", strategy="fedavg", records=[record(1, accuracy=three)])]
    assert compare_runs(folders) == "\n".join(
        [
            "                  eefl  fedavg",
            "------------------------------",
            "mean of exits   45.0 %  50.0 %",
            "exit 1          30.0 %  20.0 %",
            "exit 2          60.0 %  40.0 %",
            "exit 3               -  90.0 %",
            "calibrated      58.0 %       -",
            "  million MACs   3.000       -",
            "rounds               3       1",
            "left out             0       0",
            "time             6.0 s   2.0 s",
            "bytes down      9.0 MB  3.0 MB",
            "bytes up        3.0 MB  1.0 MB",
        ]
    )


def test_clients_evaluation_has_its_own_rows(make_run: MakeRun) -> None:
    both = [final_record(1), record(2, client_accuracy=client_summary())]
    folders = [make_run("a", records=[client_record(1)]), make_run("b", strategy="fedavg", records=both),
               make_run("c", strategy="local", records=[record(1)])]  # fmt: skip
    assert compare_runs(folders).splitlines()[2:-5] == [
        "mean of exits            60.0 ± 10.0 %         30.0 %  15.0 %",
        "exit 1                   50.0 ± 10.0 %         20.0 %  10.0 %",
        "exit 2                   70.0 ± 10.0 %         40.0 %  20.0 %",
        "calibrated                           -         58.0 %       -",
        "  million MACs                       -          3.000       -",
        "on clients               60.0 ± 10.0 %  60.0 ± 10.0 %       -",
        "  sampled at least once   70.0 ± 0.0 %   70.0 ± 0.0 %       -",
        "  tuned                   60.0 ± 0.0 %   60.0 ± 0.0 %       -",
        "  MACs saved                    37.5 %         37.5 %       -",
        "  loss allowed                 1 point        1 point       -",
    ]


def test_device_time_has_a_row_and_a_plot_where_a_run_has_it(make_run: MakeRun) -> None:
    timed = [replace(record(n), device=device_time(n)) for n in (1, 2)]
    folders = [make_run("a"), make_run("b", strategy="fedavg", records=timed)]
    rows = compare_runs(folders).splitlines()
    assert rows[-4:-1] == [
        "time             6.0 s   4.0 s",
        "device time          -   8.0 s",
        "bytes down      9.0 MB  6.0 MB",
    ]
    titles = [plot.title for plot in comparison_plots([load_run(folder) for folder in folders])]
    assert "Mean exit accuracy over device time" in titles
    assert not any("device time" in plot.title for plot in comparison_plots([load_run(folders[0])]))


def test_runs_of_one_method_are_labelled_by_name(make_run: MakeRun) -> None:
    runs = [load_run(make_run("a")), load_run(make_run("b")), load_run(make_run("c", strategy="fedavg"))]
    assert labels(runs) == ["a", "b", "fedavg"]


def test_page_has_all_runs_in_common_plots(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [make_run("a"), make_run("b", strategy="fedavg"), make_run("c", strategy="none", records=[])]
    path = write_comparison(folders, tmp_path / "comparison.html")
    page = path.read_text()
    assert page.count("<svg") == 4
    assert all(page.count(f">{name}</text>") == 4 for name in ("eefl", "fedavg"))
    assert "<th>mean of exits</th>" in page


def test_page_shows_markup_in_run_names_as_text(make_run: MakeRun, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    name = '<script>alert(1)</script> & "x"'
    page = write_comparison([make_run(name), make_run("b")], tmp_path / "comparison.html").read_text()
    shown = "&lt;script&gt;alert(1)&lt;/script&gt; &amp; "
    assert "<script" not in page
    assert f'<p class="soft">{shown}&#34;x&#34;, b</p>' in page
    assert f'<th class="number">{shown}&#34;x&#34;</th>' in page
    assert page.count(f'>{shown}"x"</text>') == 4


def test_plots_need_evaluations_and_cost_curves(make_run: MakeRun) -> None:
    pytest.importorskip("matplotlib")
    unfinished = load_run(make_run("a", records=[record(1)]))
    assert [plot.title for plot in comparison_plots([unfinished])] == [
        "Mean exit accuracy over rounds",
        "Final accuracy per exit",
        "Mean exit accuracy over time",
    ]
    assert comparison_plots([load_run(make_run("b", records=[record(1, accuracy={})]))]) == []
    every_other = load_run(make_run("c", records=[record(1, accuracy={}), final_record(2)]))
    assert len(comparison_plots([every_other])) == 4
    on_clients = load_run(make_run("d", records=[client_record(1), client_record(2)]))
    plots = comparison_plots([on_clients, unfinished])
    assert [plot.title for plot in plots][3:] == ["Inference cost against accuracy on the clients"]


def test_folder_without_a_run_is_a_user_error(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        compare_runs([make_run(), tmp_path / "absent"])

from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from common.data.summary import DataSummary
from strategies.callbacks.report.page import run_page
from strategies.callbacks.report.records import load_run
from tests.strategies.callbacks.samples import client_record, final_record, record

pytest.importorskip("matplotlib")
MakeRun = Callable[..., Path]
MARKUP = """<script>alert(1)</script> & "x" 'y' {{ 7 * 7 }} {% raw %}"""


class Reader(HTMLParser):
    """Collects tags, references, texts and the rows of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        self.labels += [value or "" for key, value in attrs if key == "aria-label"]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())
        if self._cell:
            self.rows[-1][-1] += data


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


def test_page_is_self_contained(make_run: MakeRun) -> None:
    page = read(run_page(load_run(make_run())))
    assert all(reference.startswith("#") for reference in page.references)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.tags.count("svg") == 5 + 2  # the run's own plots, the clients' and the method's terms


def test_page_shows_final_accuracies(make_run: MakeRun) -> None:
    rows = read(run_page(load_run(make_run()))).rows
    assert ["exit 1", "30.0 %", "10.0 %", "1.000", "0.750", "25.0 %"] in rows
    assert ["exit 2", "60.0 %", "20.0 %", "4.000", "any", "75.0 %"] in rows
    assert ["mean of exits", "45.0 %", "", "", "", ""] in rows
    assert ["calibrated", "58.0 %", "", "3.000", "", "100.0 %"] in rows


def test_page_shows_no_thresholds_for_exit_policies_per_device(make_run: MakeRun) -> None:
    last = final_record(2, 2)
    accuracy = {**last.accuracy, "calibrated": {**last.accuracy["calibrated"], "thresholds": []}}
    rows = read(run_page(load_run(make_run(records=[replace(last, accuracy=accuracy)])))).rows
    assert ["exit 1", "20.0 %", "10.0 %", "1.000", "by device", "25.0 %"] in rows
    assert ["exit 2", "40.0 %", "20.0 %", "4.000", "by device", "75.0 %"] in rows


def test_page_shows_the_clients_evaluation(make_run: MakeRun) -> None:
    page = run_page(load_run(make_run(records=[client_record(1), client_record(2)])))
    rows = read(page).rows
    assert ["exit 1", "55.0 ± 15.0 %", "70.0 ± 0.0 %", "1.000", "50.0 %", "0.0 %"] in rows
    assert ["exit 2", "75.0 ± 15.0 %", "90.0 ± 0.0 %", "4.000", "50.0 %", "100.0 %"] in rows
    assert ["mean of exits", "65.0 ± 15.0 %", "80.0 ± 0.0 %", "", "", ""] in rows
    assert ["tuned thresholds", "65.0 ± 5.0 %", "", "2.500", "", ""] in rows
    assert "<dt>on clients</dt><dd>65.0 ± 15.0 %</dd>" in page
    assert "Dynamic inference saves 37.5 % of the full network&#39;s MACs" in page
    assert "<h2>Final accuracy</h2>" not in page
    assert page.index("<h2>On the clients</h2>") < page.index("<h2>The run</h2>")
    read_page = read(page)
    assert read_page.tags.count("svg") == 4 + 3 + 2
    assert all(reference.startswith("#") for reference in read_page.references)
    assert "On the clients" not in run_page(load_run(make_run("server")))


def test_page_lists_failures_as_escaped_text(make_run: MakeRun) -> None:
    reason = "<script>alert('no')</script> & more"
    reports = [{"client": 9, "part": 0, "refused": "too small"}]
    page = read(
        run_page(load_run(make_run(records=[record(1, failures={4: reason}), final_record(2)], reports=reports)))
    )
    assert ["1", "4", reason] in page.rows
    assert ["", "9", "too small"] in page.rows
    assert "script" not in page.tags


def test_page_shows_markup_as_text(make_run: MakeRun) -> None:
    records = [record(1, failures={4: MARKUP}, client_metrics={MARKUP: 1.0}, terms={f"{MARKUP}-1": 1.0}), record(2)]
    refused = [{"client": 9, "part": 0, "refused": MARKUP}]
    run = load_run(make_run(MARKUP, strategy=MARKUP, records=records, failure=MARKUP, reports=refused))
    page = read(run_page(run))
    assert "script" not in page.tags
    assert {MARKUP, f"{MARKUP}: {MARKUP}", f"{MARKUP} on ? with ? ·", f"failed: {MARKUP}"} <= set(page.texts)
    assert {MARKUP, f"clients: {MARKUP}"} <= set(page.labels) & set(page.texts)  # the titles of plots
    for row in (["1", "4", MARKUP], ["", "9", MARKUP], ["run.name", MARKUP], ["run.strategy", MARKUP]):
        assert row in page.rows


def test_page_marks_rejected_clients_among_failures(make_run: MakeRun) -> None:
    rejected = record(1, failures={4: "gone", 6: "not finite"}, rejected=[6])
    text = run_page(load_run(make_run(records=[rejected, final_record(2)])))
    assert ["1", "4", "gone"] in read(text).rows
    assert ["1", "6", "rejected: not finite"] in read(text).rows
    assert "2 (1 rejected)" in text


def test_run_that_failed_before_its_first_round_has_a_page(make_run: MakeRun) -> None:
    page = run_page(load_run(make_run(records=[], failure="TimeoutError: 0 nodes after 120 s")))
    assert "failed: TimeoutError: 0 nodes after 120 s" in page
    assert ["train.epochs", "7"] in read(page).rows


def test_configuration_shows_changed_values_before_defaults(make_run: MakeRun) -> None:
    page = run_page(load_run(make_run()))
    assert page.index("train.epochs") < page.index("defaults (1)") < page.index("train.lr")


def test_exit_at_which_no_sample_leaves_says_so(make_run: MakeRun) -> None:
    last = final_record(2, 2)
    accuracy = {
        **last.accuracy,
        "calibrated": {**last.accuracy["calibrated"], "thresholds": [None]},
    }  # as JSON has infinity
    rows = read(run_page(load_run(make_run(records=[replace(last, accuracy=accuracy)])))).rows
    assert ["exit 1", "20.0 %", "10.0 %", "1.000", "never", "25.0 %"] in rows
    assert ["exit 2", "40.0 %", "20.0 %", "4.000", "any", "75.0 %"] in rows


def test_page_shows_what_was_read(make_run: MakeRun) -> None:
    folder = make_run()
    assert "Data" not in read(run_page(load_run(folder))).texts
    data = DataSummary(
        "folder", "/data", (1, 8, 8), (MARKUP, "ring"), {"train": (5, 6)}, None, ("left out: 1 file",), digest=""
    )
    (folder / "data.json").write_text(data.to_json())
    page = read(run_page(load_run(folder)))
    assert {"Data", data.headline(), "note: left out: 1 file"} <= set(page.texts)
    assert [MARKUP, "5"] in page.rows
    assert "script" not in page.tags

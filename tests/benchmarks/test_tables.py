import copy
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.tables import __main__ as command
from benchmarks.tables.cells import between, exits, gain, gain_between, limits, percent, spread, table
from benchmarks.tables.document import (
    README,
    RESULTS,
    TABLES,
    TEMPLATE,
    TOPICS,
    read_results,
    rendered,
    results,
    stale,
)
from common.errors import UserError

CUT_1 = "| slim ResNet, cut 1, fp32 / bf16 | "


@pytest.fixture
def text() -> str:
    return README.read_text(encoding="utf-8")


@pytest.fixture
def template() -> str:
    return TEMPLATE.read_text(encoding="utf-8")


def test_readme_agrees_with_results(text: str) -> None:
    assert list(stale(text)) == [], "update the tables: python -m benchmarks.tables"
    assert rendered(text) == text


def test_results_page_agrees_with_results(template: str) -> None:
    page = RESULTS.read_text(encoding="utf-8")
    assert results(template) == page, "change benchmarks/tables/results.md, then: python -m benchmarks.tables"


def test_every_measured_table_has_a_renderer(text: str) -> None:
    assert sorted(TABLES) == sorted(line.split()[2] for line in text.splitlines() if line.startswith("<!-- table: "))


@pytest.mark.parametrize("topic", TOPICS)
def test_results_page_has_every_figure(topic: str) -> None:
    words = " ".join(RESULTS.read_text(encoding="utf-8").split())  # a line break may split a figure
    figures = {name: " ".join(figure.split()) for name, figure in TOPICS[topic](read_results).items()}
    assert [name for name, figure in figures.items() if figure not in words] == []


@pytest.mark.parametrize("name", TABLES)
def test_edited_number_is_found_and_restored(name: str, text: str) -> None:
    changed = _next_digit(text, text.index("<!-- end -->", text.index(f"<!-- table: {name} -->")))
    assert list(stale(changed)) == [name]
    assert rendered(changed) == text


def test_command_finds_and_restores_edited_documents(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = RESULTS.read_text(encoding="utf-8")
    readme, written = tmp_path / "README.md", tmp_path / "RESULTS.md"
    readme.write_text(text, encoding="utf-8")
    written.write_text(_next_digit(page, len(page)), encoding="utf-8")
    monkeypatch.setattr(command, "README", readme)
    monkeypatch.setattr(command, "RESULTS", written)
    for options, code, printed in (
        (["--check"], 1, "differs from the results: RESULTS.md\n"),
        ([], 0, "written anew: RESULTS.md\n"),
        (["--check"], 0, ""),
    ):
        monkeypatch.setattr(sys, "argv", ["tables", *options])
        assert (command.main(), capsys.readouterr().out) == (code, printed)
    assert (readme.read_text(encoding="utf-8"), written.read_text(encoding="utf-8")) == (text, page)


def test_new_result_is_found(template: str) -> None:
    def read(name: str) -> dict[str, Any]:
        result = copy.deepcopy(read_results(name))
        if name == "split":
            result["speed"]["resnet_slim, cut 1, sequential, fp32"]["2 devices, TLS"]["cpu_speed"] = 0.123
        return result

    assert f"{CUT_1}0.12 / " in results(template, read)
    assert f"{CUT_1}0.12 / " not in results(template)


def test_new_result_is_found_in_readme(text: str) -> None:
    def read(name: str) -> dict[str, Any]:
        result = copy.deepcopy(read_results(name))
        if name == "baselines_cifar10":
            (cell,) = (c for c in result["cells"] if (c["variant"], c["seed"]) == ("depthfl", 1))
            cell["accuracy"]["mean"] += 0.03
        return result

    assert list(stale(text, read)) == ["methods"]
    assert rendered(text, read) != text


def test_table_without_end_marker_is_refused_and_text_kept(text: str) -> None:
    before, after = text.split("<!-- table: methods -->")
    with pytest.raises(UserError, match="0 places for table methods"):
        rendered(before + "<!-- table: methods -->" + after.replace("<!-- end -->\n", "", 1))


def test_duplicate_table_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="2 places for table methods"):
        list(stale(text + "<!-- table: methods -->\n<!-- end -->\n"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{{distree.four_lost}}", "2.0", r"unknown figures \[\] and leaves out \['distree.four_lost'\]"),
        ("{{distree.four_lost}}", "{{distree.four_lost}} {{typo}}", r"unknown figures \['typo'\] and leaves out \[\]"),
    ],
)
def test_template_must_name_exactly_the_known_figures(old: str, new: str, message: str, template: str) -> None:
    with pytest.raises(UserError, match=message):
        results(template.replace(old, new))


def test_cells_are_formatted() -> None:
    assert percent(0.3925) == "39.3"  # formatting the float would give 39.2
    assert percent(0.0052, 0) == "1"
    assert exits([0.5, 0.25], 0) == "50 / 25"
    assert between([0.5, 0.125, 0.25], 1) == "12.5 to 50.0"
    assert spread((0.5, 0.0125), 2) == "50.00 ± 1.25"
    assert [gain((0.0725, 0.001)), gain((-0.0725, 0.001))] == ["+7.3 ± 0.1", "-7.3 ± 0.1"]
    assert limits((-0.0063, 0.0044)) == "-0.63 to +0.44"
    assert gain_between((0.02, -0.00484, 0.04484)) == "+2.00 (-0.48 to +4.48)"


def test_table_is_rendered() -> None:
    assert table(("", "a"), [("b", "")]) == "| | a |\n|---|---|\n| b | |\n"
    with pytest.raises(ValueError, match="1 cells, the header 2"):
        table(("", "a"), [("b",)])


def _next_digit(text: str, end: int) -> str:
    """Change the last digit before `end`."""
    at = max(at for at in range(end) if text[at].isdigit())
    return text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]

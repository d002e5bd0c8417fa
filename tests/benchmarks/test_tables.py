import copy
from typing import Any

import pytest

from benchmarks.readme.cells import exits, gain, percent, pick, spread, table
from benchmarks.readme.document import README, TABLES, read_results, rendered, stale
from common.errors import UserError

CUT_1 = "| slim ResNet, cut 1, fp32 / bf16 | "


@pytest.fixture
def text() -> str:
    return README.read_text(encoding="utf-8")


def test_readme_is_what_the_results_say(text: str) -> None:
    assert list(stale(text)) == [], "write the tables anew: python -m benchmarks.readme"
    assert rendered(text) == text


def test_every_measured_table_has_a_renderer(text: str) -> None:
    assert sorted(TABLES) == sorted(line.split()[2] for line in text.splitlines() if line.startswith("<!-- table: "))


@pytest.mark.parametrize("name", TABLES)
def test_a_number_changed_by_hand_is_found_and_mended(name: str, text: str) -> None:
    end = text.index("<!-- end -->", text.index(f"<!-- table: {name} -->"))
    digit = max(at for at in range(end) if text[at].isdigit())
    changed = text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :]
    assert list(stale(changed)) == [name]
    assert rendered(changed) == text


def test_a_new_result_is_found(text: str) -> None:
    def read(name: str) -> dict[str, Any]:
        result = copy.deepcopy(read_results(name))
        if name == "split":
            result["speed"]["resnet_slim, cut 1, sequential, fp32"]["2 devices, TLS"]["cpu_speed"] = 0.123
        return result

    assert list(stale(text, read)) == ["streams"]
    assert f"{CUT_1}0.12 / " in rendered(text, read)
    assert f"{CUT_1}0.12 / " not in text


def test_a_table_without_its_end_is_refused_and_no_text_lost(text: str) -> None:
    before, after = text.split("<!-- table: streams -->")
    with pytest.raises(UserError, match="0 places for table streams"):
        rendered(before + "<!-- table: streams -->" + after.replace("<!-- end -->\n", "", 1))


def test_a_table_twice_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="2 places for table streams"):
        list(stale(text + "<!-- table: streams -->\n<!-- end -->\n"))


def test_cells() -> None:
    assert percent(0.3925) == "39.3"  # formatting the float would give 39.2
    assert percent(0.0052, 0) == "1"
    assert exits([0.5, 0.25], 0) == "50 / 25"
    assert spread((0.5, 0.0125), 2) == "50.00 ± 1.25"
    assert [gain((0.0725, 0.001)), gain((-0.0725, 0.001))] == ["+7.3 ± 0.1", "-7.3 ± 0.1"]


def test_table() -> None:
    assert table(("", "a"), [("b", "")]) == "| | a |\n|---|---|\n| b | |\n"
    with pytest.raises(ValueError, match="1 cells, the header 2"):
        table(("", "a"), [("b",)])


def test_a_row_is_picked_only_if_it_is_the_only_one() -> None:
    rows = [{"a": 1, "b": 1}, {"a": 1, "b": 2}]
    assert pick(rows, a=1, b=2) is rows[1]
    for wanted in ({"a": 1}, {"a": 2}):
        with pytest.raises(ValueError, match="rows have"):
            pick(rows, **wanted)

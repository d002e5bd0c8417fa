import sys
from xml.etree import ElementTree

import pytest

from common.errors import UserError
from strategies.callbacks.report.svg import INK, marker, plot, require_matplotlib

pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"


def test_plot_takes_width_and_text_colour_of_the_page() -> None:
    drawn = plot("A < B", lambda axes: axes.plot([1, 2], [3, 4], label="first & only $x"), "note")
    root = ElementTree.fromstring(drawn.svg)
    assert root.tag == f"{SVG}svg"
    assert root.attrib["aria-label"] == "A < B"
    assert set(root.attrib) == {"viewBox", "role", "aria-label"}  # no width or height: it fills its container
    assert "first & only $x" in [element.text for element in root.iter(f"{SVG}text")]
    assert INK not in drawn.svg
    assert "currentColor" in drawn.svg


def test_same_plot_has_the_same_bits() -> None:
    first, second = (plot("same", lambda axes: axes.plot([1, 2], [3, 4])) for _ in range(2))
    assert first == second


def test_legend_reads_row_by_row() -> None:
    def paint(axes: object) -> None:
        for number in range(1, 8):
            axes.plot([1, 2], [1, 2], label=f"line {number}")  # type: ignore[attr-defined]

    root = ElementTree.fromstring(plot("many", paint).svg)
    legend = next(group for group in root.iter(f"{SVG}g") if group.attrib.get("id", "").startswith("legend"))
    places = {t.text: _place(t) for t in legend.iter(f"{SVG}text")}
    reading = sorted(places, key=lambda text: (round(places[text][1]), places[text][0]))
    assert reading == [f"line {number}" for number in range(1, 8)]


def _place(element: ElementTree.Element) -> tuple[float, float]:
    if "x" in element.attrib:
        return float(element.attrib["x"]), float(element.attrib["y"])
    x, y = element.attrib["transform"].partition("translate(")[2].partition(")")[0].split()
    return float(x), float(y)


def test_only_few_points_have_markers() -> None:
    assert (marker(1), marker(500)) == ("o", "")


def test_missing_matplotlib_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[report\]'"):
        require_matplotlib()

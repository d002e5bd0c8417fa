import pytest

from strategies.callbacks.units import byte_unit, bytes_text, percent_text, points_text, seconds_text, spread_text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.5e6, "2.5 MB"), (31e9, "31.0 GB")]
)
def test_bytes(number: float, text: str) -> None:
    assert bytes_text(number) == text


def test_byte_unit_fits_the_largest_value() -> None:
    assert byte_unit(2_000_000) == (1e6, "MB")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (4.2, "4.2 s"), (60, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_seconds(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_percent() -> None:
    assert percent_text(0.8749) == "87.5 %"


def test_spread_and_points() -> None:
    assert spread_text(0.8749, 0.021) == "87.5 ± 2.1 %"
    assert [points_text(share) for share in (0.01, 0.025, 0.0)] == ["1 point", "2.5 points", "0 points"]

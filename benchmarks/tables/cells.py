"""How figures are written in text and in the cells of Markdown tables."""

from collections.abc import Callable, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

Read = Callable[[str], dict[str, Any]]  # the name of a results file, without its ending -> its content
Figures = dict[str, str]  # the name of a figure or table in the text -> how it is written


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, every line with its end; raises ValueError on a row of another length."""
    lines = [_line(header), "|---" * len(header) + "|"]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"a row has {len(row)} cells, the header {len(header)}: {row}")
        lines.append(_line(row))
    return "".join(f"{line}\n" for line in lines)


def percent(share: float, digits: int = 1) -> str:
    """Return a share in percent, without the sign; halves go up, as many shares of 10,000 test images are one."""
    return str((100 * Decimal(str(share))).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def between(shares: Iterable[float], digits: int = 0) -> str:
    """Return the least and the greatest of several shares in percent, without the sign."""
    least, *_, greatest = sorted(shares)
    return f"{percent(least, digits)} to {percent(greatest, digits)}"


def exits(shares: Iterable[float], digits: int = 1) -> str:
    """Return the accuracies of all exits."""
    return " / ".join(percent(share, digits) for share in shares)


def spread(measured: Sequence[float], digits: int = 1) -> str:
    """Return a mean and its standard deviation, both shares, in percent."""
    mean, deviation = measured
    return f"{percent(mean, digits)} ± {percent(deviation, digits)}"


def signed(share: float, digits: int = 1) -> str:
    """Return a difference in percentage points, with its sign."""
    return f"{'+' if share >= 0 else ''}{percent(share, digits)}"


def gain(measured: Sequence[float], digits: int = 1) -> str:
    """Return a mean difference with its sign, and its standard deviation, in percentage points."""
    mean, deviation = measured
    return f"{signed(mean, digits)} ± {percent(deviation, digits)}"


def limits(measured: Sequence[float], digits: int = 2) -> str:
    """Return an interval of a difference, shares, in percentage points with signs."""
    low, high = (signed(end, digits) for end in measured)
    return f"{low} to {high}"


def gain_between(measured: Sequence[float], digits: int = 2) -> str:
    """Return a mean difference and the ends of its interval, shares, in percentage points with their signs."""
    mean, *ends = measured
    return f"{signed(mean, digits)} ({limits(ends, digits)})"


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)

"""Numbers as readable text."""


def byte_unit(largest: float) -> tuple[float, str]:
    """Return (bytes, name) of the largest unit that is not above `largest` bytes."""
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if largest >= size:
            return size, name
    return 1.0, "B"


def bytes_text(number: float) -> str:
    """Return bytes as text, such as 12.3 MB."""
    size, name = byte_unit(number)
    return f"{number / size:.1f} {name}" if size > 1 else f"{number:.0f} B"


def seconds_text(seconds: float) -> str:
    """Return a duration as text: 4.2 s, 3 min 05 s or 2 h 07 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def energy_text(joules: float) -> str:
    """Return an energy as text, such as 12.3 kJ."""
    return f"{joules / 1e3:.1f} kJ" if joules >= 1e3 else f"{joules:.1f} J"


def spread_text(mean: float, spread: float) -> str:
    """Return a mean and its spread, shares in [0, 1], as text: 87.5 ± 2.1 %."""
    return f"{100 * mean:.1f} ± {percent_text(spread)}"


def points_text(share: float) -> str:
    """Return a difference of shares in [0, 1] as text: 1 point, 2.5 points."""
    points = f"{100 * share:.3g}"
    return f"{points} point{'' if points == '1' else 's'}"


def percent_text(share: float) -> str:
    """Return a share in [0, 1] as text, such as 87.5 %."""
    return f"{100 * share:.1f} %"


def rejected_text(number: int) -> str:
    """Return the note behind a number of clients left out: how many of them were rejected."""
    return f" ({number} rejected)" if number else ""

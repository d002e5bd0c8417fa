"""Time and energy on the devices, from the field `device` of the rounds (`strategies.engine.clock`)."""

from typing import TYPE_CHECKING

from strategies.callbacks.report.records import RunData
from strategies.callbacks.report.svg import Plot, marker, per_cent, plot
from strategies.callbacks.units import energy_text, percent_text, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHARES = ("computing", "on the link", "idle")


def device_plots(run: RunData) -> list[Plot]:
    """Return accuracy against device time and the time per tier; none for a run of an older version."""
    if not run.device_totals:
        return []
    plots = [accuracy_plot(run)] if any(number in run.device_totals for number, _ in run.means) else []
    return [*plots, idle_plot(run)] if part_seconds(run) else plots


def device_facts(run: RunData) -> dict[str, str]:
    """Return what the head of the report says."""
    facts = {"device time": seconds_text(run.device_seconds)} if run.device_totals else {}
    return facts if run.energy is None else facts | {"energy on devices": energy_text(run.energy)}


def accuracy_plot(run: RunData) -> Plot:
    """Return the mean exit accuracy against the devices' time."""
    points = [(run.device_totals[number], mean) for number, mean in run.means if number in run.device_totals]

    def paint(axes: "Axes") -> None:
        axes.plot(*zip(*points, strict=True), marker=marker(len(points)))
        axes.set_xlabel(f"seconds on the devices, {run.clock}")
        axes.set_xlim(left=0)
        per_cent(axes)

    return plot("Accuracy against device time", paint, f"mean of exits; {seconds_text(run.device_seconds)} in all")


def idle_plot(run: RunData) -> Plot:
    """Return, per tier, what a client's round is made of: computing, sending, waiting for the slowest."""
    parts = part_seconds(run)
    names = [str(part) for part in parts]

    def paint(axes: "Axes") -> None:
        bottom = [0.0] * len(names)
        for share, label in enumerate(SHARES):
            values = [shares[share] for shares in parts.values()]
            axes.bar(names, values, bottom=bottom, width=0.6, label=label, alpha=0.35 if label == "idle" else 1.0)
            bottom = [low + value for low, value in zip(bottom, values, strict=True)]
        axes.margins(y=0.12)
        for place, shares in enumerate(parts.values()):
            text = f"{percent_text(shares[-1] / sum(shares))} idle" if sum(shares) else ""
            axes.annotate(text, (place, bottom[place]), xytext=(0, 3), textcoords="offset points", ha="center",
                          fontsize=8)  # fmt: skip
        axes.set_xlabel("depth, cut or student")
        axes.set_ylabel("seconds of a client's round")

    return plot("Time on the devices", paint, "mean over the clients at work and the rounds")


def part_seconds(run: RunData) -> dict[int, tuple[float, float, float]]:
    """Return, per part, a client's mean seconds in a round: computing, on the link and idle."""
    sums: dict[int, list[float]] = {}
    for event in run.timed:
        for part, seconds in event["device"]["by_part"].items():
            values = [seconds["clients"], seconds["busy"] - seconds["link"], seconds["link"], seconds["idle"]]
            known = sums.setdefault(int(part), [0.0] * len(values))
            sums[int(part)] = [a + b for a, b in zip(known, values, strict=True)]
    return {
        part: (computing / clients, link / clients, idle / clients)
        for part, (clients, computing, link, idle) in sorted(sums.items())
    }

"""The plots of one run."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from strategies.callbacks.report.device_time import device_plots
from strategies.callbacks.report.records import RunData
from strategies.callbacks.report.svg import COLOURS, INK, Plot, marker, per_cent, plot, whole_numbers
from strategies.callbacks.units import byte_unit, bytes_text, seconds_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WHOLE = "round"  # in a record's seconds: the round itself, of which the phases are parts
Line = tuple[list[int], list[float]]  # rounds and values


def run_plots(run: RunData) -> list[Plot]:
    """Return every plot that the run has data for."""
    plots = [accuracy_plot(run)] if run.on_server else []
    plots += [cost_plot(run)] if run.final else []
    plots += [tier_plot(run), traffic_plot(run), seconds_plot(run)] if run.rounds else []
    return [*plots, *device_plots(run)]


def term_plots(run: RunData) -> list[Plot]:
    """Return a plot per kind of number that the clients or the method logged over the rounds."""
    clients = term_lines(run, "client_metrics")
    plots = [_lines_plot(f"clients: {kind}", lines) for kind, lines in clients.items()]
    return plots + [_lines_plot(kind, lines) for kind, lines in term_lines(run, "terms").items()]


def accuracy_plot(run: RunData) -> Plot:
    """Return the accuracy per exit that the server measured over rounds."""
    numbers = [number for number, _ in run.evaluated]
    by_exit = list(zip(*(exits for _, exits in run.evaluated), strict=True))

    def paint(axes: "Axes") -> None:
        for number, values in enumerate(by_exit, start=1):
            axes.plot(numbers, values, marker=marker(len(numbers)), label=f"exit {number}")
        if len(by_exit) > 1:
            mean = [sum(column) / len(by_exit) for column in zip(*by_exit, strict=True)]
            axes.plot(numbers, mean, color=INK, linestyle="--", linewidth=1.2, label="mean")
        whole_numbers(axes)
        per_cent(axes)

    return plot("Accuracy per exit", paint, "of the test samples")


def cost_plot(run: RunData) -> Plot:
    """Return accuracy against mean MACs at the end."""

    def paint(axes: "Axes") -> None:
        draw_budget(axes, run.final, COLOURS[0], "budgeted")
        exits = run.final["exits"]
        macs = [value / 1e6 for value in run.final["exit_macs"]]
        axes.plot(macs, exits, "D", color=COLOURS[2], markersize=5, label="all samples at one exit")
        for number, point in enumerate(zip(macs, exits, strict=True), start=1):
            axes.annotate(str(number), point, xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        chosen = run.final["calibrated"]
        at = (chosen["mean_macs"] / 1e6, chosen["accuracy"])
        axes.plot(*at, "*", color=COLOURS[1], markersize=13, label="calibrated")
        axes.margins(y=0.12)
        cost_axes(axes)

    return plot("Accuracy against cost", paint, "thresholds fitted on validation images, applied to test images")


def draw_budget(axes: "Axes", final: Mapping[str, Any], colour: str, label: str) -> None:
    """Draw the budgeted curve, from low to high cost."""
    points = sorted((point["mean_macs"] / 1e6, point["accuracy"]) for point in final["budgeted"])
    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=2.5, label=label)


def cost_axes(axes: "Axes") -> None:
    """Name the axes of accuracy against cost."""
    axes.set_xlabel("million MACs per image, mean")
    per_cent(axes)


def tier_plot(run: RunData) -> Plot:
    """Return clients per depth: how many declared it, and how many a round trained on average."""
    trained = {
        depth: sum(event["clients"].get(str(depth), 0) for event in run.rounds) / len(run.rounds)
        for depth in sorted({int(depth) for event in run.rounds for depth in event["clients"]})
    }
    depths = sorted(set(trained) | set(run.declared))

    def paint(axes: "Axes") -> None:
        places = range(len(depths))
        for shift, (values, label) in enumerate(((run.declared, "declared"), (trained, "trained per round (mean)"))):
            bars = axes.bar([place + 0.4 * shift - 0.2 for place in places],
                            [values.get(depth, 0) for depth in depths], width=0.38, label=label)  # fmt: skip
            axes.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        axes.set_xticks(list(places), [str(depth) for depth in depths])
        axes.set_xlabel("depth, cut or student")
        axes.set_ylabel("clients")

    refused = f"{len(run.refused)} could not take part" if run.refused else ""
    return plot("Tier mix", paint, refused)


def traffic_plot(run: RunData) -> Plot:
    """Return bytes to and from the clients per round."""
    down, up = run.traffic("down"), run.traffic("up")
    size, unit = byte_unit(max(*down, *up))

    def paint(axes: "Axes") -> None:
        for values, label in ((down, "down, to clients"), (up, "up, from clients")):
            axes.plot(run.numbers, [v / size for v in values], marker=marker(len(values)), label=label)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"{unit} per round")
        whole_numbers(axes)

    return plot("Traffic", paint, f"{bytes_text(sum(down))} down and {bytes_text(sum(up))} up in all")


def seconds_plot(run: RunData) -> Plot:
    """Return seconds per round, stacked by phase."""
    names = [name for name in _in_order(event["seconds"] for event in run.rounds) if name != WHOLE]
    phases = {name: [event["seconds"].get(name, 0.0) for event in run.rounds] for name in names}
    measured = [sum(column) for column in zip(*phases.values(), strict=True)]
    phases["other"] = [max(0.0, e["seconds"][WHOLE] - m) for e, m in zip(run.rounds, measured, strict=True)]

    def paint(axes: "Axes") -> None:
        # two points per round make steps: a single round is visible too, and a phase stays one shape
        edges = [number + side for number in run.numbers for side in (-0.5, 0.5)]
        steps = [[value for value in values for _ in range(2)] for values in phases.values()]
        axes.stackplot(edges, steps, labels=list(phases), alpha=0.85, linewidth=0)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_ylabel("seconds")
        whole_numbers(axes)

    return plot("Time per round", paint, f"{seconds_text(run.seconds)} in all")


def term_lines(run: RunData, field: str) -> dict[str, dict[str, Line]]:
    """Return kind -> member -> line of the scalars in a field of the records.

    Names that differ only in numbers are of one kind: generator-1-label and generator-2-label are the members 1 and 2
    of "generator label".
    """
    kinds: dict[str, dict[str, Line]] = {}
    for event in run.rounds:
        for name, value in event[field].items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            kind = " ".join(part for part in name.split("-") if not part.isdigit())
            numbers, values = kinds.setdefault(kind, {}).setdefault("-".join(re.findall(r"\d+", name)), ([], []))
            numbers.append(event["round"])
            values.append(float(value))
    return kinds


def _lines_plot(title: str, lines: Mapping[str, Line]) -> Plot:
    def paint(axes: "Axes") -> None:
        for member, (numbers, values) in lines.items():
            axes.plot(numbers, values, marker=marker(len(numbers)), label=member if len(lines) > 1 else None)
        whole_numbers(axes)

    return plot(title, paint)


def _in_order(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all keys in the order in which they first appear."""
    return list(dict.fromkeys(key for mapping in mappings for key in mapping))

"""Several runs side by side: a text table for the terminal and a page of common plots."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from common.storage.files import write_text
from strategies.callbacks.accuracy import mean_text
from strategies.callbacks.report.clients import draw_sweep
from strategies.callbacks.report.plots import cost_axes, draw_budget
from strategies.callbacks.report.records import RunData, load_run
from strategies.callbacks.report.rendering import Table, render
from strategies.callbacks.report.svg import COLOURS, Plot, marker, per_cent, plot, require_matplotlib, whole_numbers
from strategies.callbacks.units import bytes_text, percent_text, points_text, seconds_text, spread_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NONE = "-"  # where a run has no such number


def compare_runs(run_folders: Sequence[Path]) -> str:
    """Return a plain text table, a column per run: final accuracies, time and bytes.

    Raises `UserError` for a folder that holds no run.
    """
    rows = comparison_rows([load_run(folder) for folder in run_folders])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def write_comparison(run_folders: Sequence[Path], path: Path) -> Path:
    """Write a self-contained page with the curves of all runs in common plots; return its path.

    Raises `UserError` for a folder that holds no run, and when matplotlib is missing.
    """
    require_matplotlib()
    runs = [load_run(folder) for folder in run_folders]
    head, *rows = comparison_rows(runs)
    page = render(
        "comparison.html.md", runs=runs, plots=comparison_plots(runs), numbers=Table(head, rows, numbers=True)
    )
    write_text(path, page)
    return path


def labels(runs: Sequence[RunData]) -> list[str]:
    """Return a label per run: its method, or its own name where runs share a method."""
    methods = [run.strategy for run in runs]
    return [run.strategy if methods.count(run.strategy) == 1 else run.name for run in runs]


def comparison_rows(runs: Sequence[RunData]) -> list[list[str]]:
    """Return rows of texts, the first with the runs' labels; the first column names the row."""
    by_exit = zip_longest(*(_exit_texts(run) for run in runs), fillvalue=NONE)  # networks may have different exits
    rows = [
        ["", *labels(runs)],
        ["mean of exits", *(percent_text(r.means[-1][1]) if r.on_server else mean_text(r.clients) for r in runs)],
        *([f"exit {n}", *accuracies] for n, accuracies in enumerate(by_exit, start=1)),
    ]
    if any(run.final for run in runs):
        chosen = [run.final.get("calibrated") for run in runs]
        rows += [
            ["calibrated", *(_share(c and c["accuracy"]) for c in chosen)],
            ["  million MACs", *(f"{c['mean_macs'] / 1e6:.3f}" if c else NONE for c in chosen)],
        ]
    if any(run.clients for run in runs):
        rows += _client_rows(runs)
    timed = [["device time", *(seconds_text(run.device_seconds) if run.timed else NONE for run in runs)]]
    return [
        *rows,
        ["rounds", *(str(len(run.rounds)) for run in runs)],
        ["left out", *(str(len(run.refused) + sum(len(e["failures"]) for e in run.rounds)) for run in runs)],
        ["time", *(seconds_text(run.seconds) for run in runs)],
        *(timed if any(run.timed for run in runs) else []),
        ["bytes down", *(bytes_text(sum(run.traffic("down"))) for run in runs)],
        ["bytes up", *(bytes_text(sum(run.traffic("up"))) for run in runs)],
    ]


def comparison_plots(runs: Sequence[RunData]) -> list[Plot]:
    """Return the common plots of the runs that were evaluated."""
    named = [(label, run) for label, run in zip(labels(runs), runs, strict=True) if run.evaluated]
    if not named:
        return []
    plots = [_over_rounds(named), _by_exit(named), _over_time(named)]
    plots += [_over_device_time(named)] if any(run.timed for _, run in named) else []
    plots += [_cost(named)] if any(run.final for _, run in named) else []
    return [*plots, _client_cost(named)] if any(run.clients for _, run in named) else plots


Named = Sequence[tuple[str, RunData]]


def _over_rounds(runs: Named) -> Plot:
    def paint(axes: "Axes") -> None:
        for label, run in runs:
            numbers, means = _means(run)
            axes.plot(numbers, means, marker=marker(len(numbers)), label=label)
        whole_numbers(axes)
        per_cent(axes)

    return plot("Mean exit accuracy over rounds", paint)


def _over_time(runs: Named) -> Plot:
    def paint(axes: "Axes") -> None:
        for label, run in runs:
            numbers, means = _means(run)
            axes.plot([run.elapsed[number] for number in numbers], means, marker=marker(len(numbers)), label=label)
        axes.set_xlabel("seconds")
        per_cent(axes)

    return plot("Mean exit accuracy over time", paint)


def _over_device_time(runs: Named) -> Plot:
    def paint(axes: "Axes") -> None:
        for label, run in runs:
            points = [(run.device_totals[number], mean) for number, mean in run.means if number in run.device_totals]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker(len(points)), label=label)
        axes.set_xlabel("seconds on the devices")
        per_cent(axes)

    clocks = sorted({run.clock for _, run in runs if run.clock})
    return plot("Mean exit accuracy over device time", paint, " and ".join(clocks))


def _by_exit(runs: Named) -> Plot:
    width = 0.8 / len(runs)

    def paint(axes: "Axes") -> None:
        for place, (label, run) in enumerate(runs):
            exits = run.evaluated[-1][1]
            left = [e - 0.4 + width * (place + 0.5) for e in range(1, len(exits) + 1)]
            axes.bar(left, exits, width=width * 0.94, label=label)
        whole_numbers(axes)
        axes.set_xlabel("exit")
        per_cent(axes)

    return plot("Final accuracy per exit", paint)


def _cost(runs: Named) -> Plot:
    def paint(axes: "Axes") -> None:
        for place, (label, run) in enumerate(runs):
            if run.final:
                colour, chosen = COLOURS[place % len(COLOURS)], run.final["calibrated"]
                draw_budget(axes, run.final, colour, label)
                axes.plot(chosen["mean_macs"] / 1e6, chosen["accuracy"], "*", color=colour, markersize=13)
        cost_axes(axes)

    return plot("Accuracy against cost", paint, "lines: budgeted; stars: calibrated")


def _client_cost(runs: Named) -> Plot:
    def paint(axes: "Axes") -> None:
        for place, (label, run) in enumerate(runs):
            if run.clients:
                colour, tuned = COLOURS[place % len(COLOURS)], run.clients["tuned"]
                draw_sweep(axes, run.clients, colour, label)
                axes.plot(tuned["mean_macs"] / 1e6, tuned["accuracy"], "*", color=colour, markersize=13)
        axes.set_xlabel("million MACs per sample, mean over clients")
        per_cent(axes)

    return plot("Inference cost against accuracy on the clients", paint, "lines: one threshold for all; stars: tuned")


def _client_rows(runs: Sequence[RunData]) -> list[list[str]]:
    found = [run.clients for run in runs]
    return [
        ["on clients", *(mean_text(c) for c in found)],
        ["  sampled at least once", *(mean_text(c.get("sampled", {})) for c in found)],
        ["  tuned", *(spread_text(c["tuned"]["accuracy"], c["tuned"]["spread"]) if c else NONE for c in found)],
        ["  MACs saved", *(percent_text(c["tuned"]["saved"]) if c else NONE for c in found)],
        ["  loss allowed", *(points_text(c["accuracy_loss"]) if c else NONE for c in found)],
    ]


def _exit_texts(run: RunData) -> list[str]:
    """Return each exit's last accuracy, with its spread where only the clients measured it."""
    if run.on_server:
        return [percent_text(accuracy) for accuracy in run.evaluated[-1][1]]
    return [
        spread_text(*pair) for pair in zip(run.clients.get("exits", []), run.clients.get("spread", []), strict=True)
    ]


def _means(run: RunData) -> tuple[list[int], list[float]]:
    numbers, means = zip(*run.means, strict=True)
    return list(numbers), list(means)


def _share(value: float | None) -> str:
    return NONE if value is None else percent_text(value)

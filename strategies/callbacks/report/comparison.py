"""Several runs side by side, over one seed or many: a text table for the terminal and a page of common plots."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.storage.files import write_text
from strategies.callbacks.report.clients import draw_sweep
from strategies.callbacks.report.measures import (
    NONE,
    Gain,
    Group,
    Measure,
    mean_of_exits,
    measures,
    paired_gain,
    spread,
)
from strategies.callbacks.report.plots import cost_axes, draw_budget
from strategies.callbacks.report.records import RunData
from strategies.callbacks.report.rendering import Table, render
from strategies.callbacks.report.svg import COLOURS, Plot, marker, per_cent, plot, require_matplotlib, whole_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def text_table(rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Return rows as lines of text, the first one as the head; columns that do not fit into `width` follow below."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    blocks: list[list[int]] = [[]]
    for column in range(1, len(widths)):
        taken = widths[0] + sum(2 + widths[other] for other in [*blocks[-1], column])
        if width and blocks[-1] and taken > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(_block(rows, widths, columns) for columns in blocks)


def write_comparison(sections: Mapping[str, Sequence[Group]], path: Path, title: str = "Comparison") -> Path:
    """Write a self-contained page with a section per heading: the curves of its groups in common plots, and numbers.

    Raises `UserError` when matplotlib is missing.
    """
    require_matplotlib()
    content = [
        (heading, [group.label for group in groups], comparison_plots(groups), _table(groups), _runs(groups))
        for heading, groups in sections.items()
    ]
    write_text(path, render("comparison.html.md", title=title, sections=content))
    return path


def comparison_rows(groups: Sequence[Group]) -> list[list[str]]:
    """Return rows of texts, the first with the groups' labels; the first column names the row.

    Several groups have a row for what each gains over the first one, paired by seed.
    """
    known = measures([run for group in groups for run in group.runs.values()])
    rows = [["", *(group.label for group in groups)]]
    for measure in known:
        rows.append([measure.name, *(measure_text(group, measure) for group in groups)])
        if measure.value is mean_of_exits and len(groups) > 1:
            rows += _gain_rows(groups)
    if any(len(group.runs) > 1 for group in groups):
        rows.append(["seeds", *(str(len(group.runs)) for group in groups)])
    return rows


def measure_text(group: Group, measure: Measure) -> str:
    """Return a group's number as text."""
    found = spread(group, measure.value)
    return measure.text(found.mean, found.deviation) if found else NONE


def gain_text(gain: Gain) -> str:
    """Return a gain in percentage points, with its deviation over seeds if there is one."""
    mean = f"{100 * gain.mean:+.2f}"
    return mean if gain.deviation is None else f"{mean} ± {100 * gain.deviation:.2f}"


def interval_text(gain: Gain) -> str:
    """Return the interval of a gain's mean in percentage points."""
    return NONE if gain.interval is None else " to ".join(f"{100 * end:+.2f}" for end in gain.interval)


def comparison_plots(groups: Sequence[Group]) -> list[Plot]:
    """Return the common plots of the runs that were evaluated; bands are a deviation over seeds on either side."""
    named = [
        Group(group.label, runs)
        for group in groups
        if (runs := {seed: run for seed, run in group.runs.items() if run.evaluated})
    ]
    if not named:
        return []
    evaluated = [run for group in named for run in group.all]
    plots = [_over_rounds(named), _by_exit(named), _over_time(named)]
    plots += [_over_device_time(named)] if any(run.timed for run in evaluated) else []
    plots += [_cost(named)] if any(run.final for run in evaluated) else []
    return [*plots, _client_cost(named)] if any(run.clients for run in evaluated) else plots


def _block(rows: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]) -> str:
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in columns)]) for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _table(groups: Sequence[Group]) -> Table:
    head, *rows = comparison_rows(groups)
    return Table(head, rows, numbers=True)


def _runs(groups: Sequence[Group]) -> list[str]:
    """Return a line for every run."""
    runs = [(group.label, seed, run) for group in groups for seed, run in sorted(group.runs.items())]
    return [f"{label}, seed {seed}: {run.name}, {run.status}" for label, seed, run in runs]


def _gain_rows(groups: Sequence[Group]) -> list[list[str]]:
    first, *others = groups
    gains = [paired_gain(group, first, mean_of_exits) for group in others]
    rows = [[f"  points over {first.label}", "", *(gain_text(gain) if gain else NONE for gain in gains)]]
    sides = [" and ".join(sorted({_samples(run) for run in group.all if run.evaluated})) for group in groups]
    if len(set(sides) - {""}) > 1:  # no gain says anything between these
        rows.insert(0, ["  of samples of the", *(side or NONE for side in sides)])
    if any(gain and gain.interval for gain in gains):
        rows.append(["  95 % interval", "", *(interval_text(gain) if gain else NONE for gain in gains)])
    return rows


def _samples(run: RunData) -> str:
    return "server" if run.on_server else "clients"


def _over_rounds(groups: Sequence[Group]) -> Plot:
    def paint(axes: "Axes") -> None:
        for group in groups:
            _curve(axes, group, {seed: [round_ for round_, _ in run.means] for seed, run in group.runs.items()})
        whole_numbers(axes)
        per_cent(axes)

    return plot("Mean exit accuracy over rounds", paint, _note(groups))


def _over_time(groups: Sequence[Group]) -> Plot:
    def paint(axes: "Axes") -> None:
        for group in groups:
            times = {s: [run.elapsed[round_] for round_, _ in run.means] for s, run in group.runs.items()}
            _curve(axes, group, times)
        axes.set_xlabel("seconds")
        per_cent(axes)

    return plot("Mean exit accuracy over time", paint, _note(groups))


def _over_device_time(groups: Sequence[Group]) -> Plot:
    def paint(axes: "Axes") -> None:
        for group in groups:
            if all(run.timed for run in group.all):
                _curve(axes, group, {s: [r.device_totals[n] for n, _ in r.means] for s, r in group.runs.items()})
        axes.set_xlabel("seconds on the devices")
        per_cent(axes)

    clocks = sorted({run.clock for group in groups for run in group.all if run.clock})
    return plot("Mean exit accuracy over device time", paint, " and ".join(clocks))


def _curve(axes: "Axes", group: Group, places: Mapping[int, Sequence[float]]) -> None:
    """Draw a group's mean accuracy at the rounds that all its runs have, at the mean of their places."""
    values = [dict(run.means) for run in group.all]
    rounds = sorted(set.intersection(*(set(own) for own in values)))
    by_round = [dict(zip((r for r, _ in group.runs[s].means), places[s], strict=True)) for s in sorted(group.runs)]
    x = [statistics.fmean(own[round_] for own in by_round) for round_ in rounds]
    means = [statistics.fmean(own[round_] for own in values) for round_ in rounds]
    (line,) = axes.plot(x, means, marker=marker(len(rounds)), label=group.label)
    if len(values) > 1:
        off = [statistics.stdev([own[r] for own in values]) for r in rounds]
        low, high = ([m + sign * d for m, d in zip(means, off, strict=True)] for sign in (-1, 1))
        axes.fill_between(x, low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def _by_exit(groups: Sequence[Group]) -> Plot:
    width = 0.8 / len(groups)

    def paint(axes: "Axes") -> None:
        for place, group in enumerate(groups):
            # all runs of a group have the same exits, but one that a kill ended early may have none
            columns = list(zip(*(run.evaluated[-1][1] for run in group.all), strict=False))
            left = [e - 0.4 + width * (place + 0.5) for e in range(1, len(columns) + 1)]
            off = [statistics.stdev(column) for column in columns] if len(group.runs) > 1 else None
            axes.bar(left, list(map(statistics.fmean, columns)), width=width * 0.94, label=group.label, yerr=off,
                     error_kw={"alpha": 0.55, "linewidth": 1.0})  # fmt: skip
        whole_numbers(axes)
        axes.set_xlabel("exit")
        per_cent(axes)

    return plot("Final accuracy per exit", paint, _note(groups))


def _cost(groups: Sequence[Group]) -> Plot:
    def paint(axes: "Axes") -> None:
        for colour, label, run in _each(groups):
            if run.final:
                chosen = run.final["calibrated"]
                draw_budget(axes, run.final, colour, label)
                axes.plot(chosen["mean_macs"] / 1e6, chosen["accuracy"], "*", color=colour, markersize=13)
        cost_axes(axes)

    return plot("Accuracy against cost", paint, "lines: budgeted; stars: calibrated")


def _client_cost(groups: Sequence[Group]) -> Plot:
    def paint(axes: "Axes") -> None:
        for colour, label, run in _each(groups):
            if run.clients:
                tuned = run.clients["tuned"]
                draw_sweep(axes, run.clients, colour, label)
                axes.plot(tuned["mean_macs"] / 1e6, tuned["accuracy"], "*", color=colour, markersize=13)
        axes.set_xlabel("million MACs per sample, mean over clients")
        per_cent(axes)

    return plot("Inference cost against accuracy on the clients", paint, "lines: one threshold for all; stars: tuned")


def _each(groups: Sequence[Group]) -> Iterable[tuple[str, str, RunData]]:
    """Yield (colour, label, run) of every run; only a group's first run has a label, for the legend."""
    for place, group in enumerate(groups):
        for number, run in enumerate(group.all):
            yield COLOURS[place % len(COLOURS)], group.label if number == 0 else "", run


def _note(groups: Sequence[Group]) -> str:
    return "mean over seeds, ± a standard deviation" if any(len(group.runs) > 1 for group in groups) else ""

"""The clients' own evaluation in the report: plots, a table and a sentence, from `RunData.clients`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from strategies.callbacks.accuracy import above_majority, mean_text, samples_text
from strategies.callbacks.report.records import RunData
from strategies.callbacks.report.svg import COLOURS, INK, Plot, marker, per_cent, plot, whole_numbers
from strategies.callbacks.units import percent_text, points_text, spread_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = ("", "all clients", "sampled at least once", "million MACs", "leave here, tuned", "leave here, common")


def client_plots(run: RunData) -> list[Plot]:
    """Return the plots of the clients' evaluation; empty if they did not evaluate."""
    if not run.clients:
        return []
    return [
        accuracy_plot(run.on_clients), sampled_plot(run.clients), cost_plot(run.clients), histogram_plot(run.clients),
    ]  # fmt: skip


def accuracy_plot(on_clients: Sequence[tuple[int, Mapping[str, Any]]]) -> Plot:
    """Return accuracy per exit over rounds, each with a band of one spread over the clients on either side."""
    numbers = [number for number, _ in on_clients]

    def paint(axes: "Axes") -> None:
        for e in range(max(len(summary["exits"]) for _, summary in on_clients)):
            # a round in which no client of that depth answered has no such exit
            line = [(n, s["exits"][e], s["spread"][e]) for n, s in on_clients if len(s["exits"]) > e]
            rounds, means, spreads = (list(column) for column in zip(*line, strict=True))
            colour = COLOURS[e % len(COLOURS)]
            axes.plot(rounds, means, color=colour, marker=marker(len(numbers)), label=f"exit {e + 1}")
            low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
            axes.fill_between(rounds, low, high, color=colour, alpha=0.13, linewidth=0)
        overall = [summary["mean"] for _, summary in on_clients]
        axes.plot(numbers, overall, color=INK, linestyle="--", linewidth=1.2, label="mean")
        whole_numbers(axes)
        per_cent(axes)

    note = f"of {samples_text(on_clients[-1][1])}; mean over clients, bands: ± spread over them"
    return plot("Accuracy on the clients", paint, note)


def sampled_plot(summary: Mapping[str, Any]) -> Plot:
    """Return the last accuracy per exit: all clients beside those that were sampled at least once."""
    groups = [("all clients", summary), ("sampled at least once", summary["sampled"])]

    def paint(axes: "Axes") -> None:
        for shift, (label, group) in enumerate((label, group) for label, group in groups if group):
            bars = [*zip(group["exits"], group["spread"], strict=True), (group["mean"], group["mean_spread"])]
            # the mean is drawn after the deepest exit of all clients
            places = [*range(len(group["exits"])), len(summary["exits"])]
            means, spreads = zip(*bars, strict=True)
            drawn = axes.bar(
                [place + 0.4 * shift - 0.2 for place in places], means, width=0.38, yerr=spreads, ecolor=INK,
                error_kw={"alpha": 0.55, "linewidth": 1.0}, label=f"{label} ({group['clients']})",
            )  # fmt: skip
            axes.bar_label(drawn, [f"{100 * m:.1f}" for m in means], label_type="center", fontsize=8, color="white")
        exits = len(summary["exits"])
        axes.set_xticks(list(range(exits + 1)), [*(f"exit {e + 1}" for e in range(exits)), "mean"])
        per_cent(axes)

    return plot("All clients and those that trained", paint, "whiskers: ± spread over clients")


def cost_plot(summary: Mapping[str, Any]) -> Plot:
    """Return accuracy against mean MACs: a sweep of one threshold for all clients, and the tuned thresholds."""
    lost = points_text(summary["accuracy_loss"])

    def paint(axes: "Axes") -> None:
        draw_sweep(axes, summary, COLOURS[0], "one threshold for all")
        for point in summary["curve"][:-1:2]:
            axes.annotate(f"{point['threshold']:g}", (point["mean_macs"] / 1e6, point["accuracy"]), xytext=(0, 6),
                          textcoords="offset points", ha="center", fontsize=7.5)  # fmt: skip
        full = summary["curve"][-1]
        marks = (("full network", full, "D", COLOURS[2], 6), ("common", summary["common"], "s", COLOURS[3], 7),
                 ("tuned", summary["tuned"], "*", COLOURS[1], 13))  # fmt: skip
        for label, point, shape, colour, size in marks:
            at = (point["mean_macs"] / 1e6, point["accuracy"])
            axes.plot(*at, shape, color=colour, markersize=size, label=label)
        axes.axhline(full["accuracy"] - summary["accuracy_loss"], color=INK, linestyle=":", linewidth=1.2,
                     label=f"{lost} lost")  # fmt: skip
        axes.margins(y=0.14)
        axes.set_xlabel("million MACs per sample, mean over clients")
        per_cent(axes)

    return plot("Inference cost against accuracy", paint, "numbers: confidence at which a sample leaves")


def draw_sweep(axes: "Axes", summary: Mapping[str, Any], colour: str, label: str) -> None:
    """Draw the curve of one threshold for all clients, up to the full network."""
    points = [(point["mean_macs"] / 1e6, point["accuracy"]) for point in summary["curve"]]
    axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)


def histogram_plot(summary: Mapping[str, Any]) -> Plot:
    """Return the share of samples that leave at each exit, at the clients' own thresholds and at the common one."""

    def paint(axes: "Axes") -> None:
        for shift, (label, kind) in enumerate((("tuned per client", "tuned"), ("common threshold", "common"))):
            shares = exit_shares(summary[kind]["exit_histogram"])
            places = [e + 0.4 * shift - 0.2 for e in range(len(shares))]
            bars = axes.bar(places, shares, width=0.38, color=COLOURS[(1, 3)[shift]], label=label)
            axes.bar_label(bars, [percent_text(share) for share in shares], fontsize=8, padding=2)
        axes.set_xticks(list(range(len(shares))), [f"exit {e + 1}" for e in range(len(shares))])
        axes.set_ylabel("samples that leave")
        axes.margins(y=0.1)
        per_cent(axes)

    return plot("Where samples leave", paint, f"of {samples_text(summary)}, all together")


def exit_shares(histogram: Sequence[int]) -> list[float]:
    """Return counts as shares of their sum."""
    return [count / sum(histogram) for count in histogram]


def saving_sentence(summary: Mapping[str, Any]) -> str:
    """Return a sentence on the MACs that dynamic inference saves and the accuracy that it costs."""
    if not above_majority(summary):
        return (
            f"The clients' networks are not clearly better than answering each client's most frequent class, which is "
            f"right on {percent_text(summary['majority'])} of its samples: what early exits save says nothing here."
        )
    tuned, common, full = summary["tuned"], summary["common"], summary["tuned"]["full_accuracy"]
    one = common["threshold"]
    kind = "at which no sample leaves early" if one is None else f"{one:g}"
    caution = (
        f" {summary['without_test']} of {summary['clients']} clients are measured on the validation samples on which "
        "their thresholds were chosen."
        if summary["without_test"]
        else ""
    )
    return (
        f"Dynamic inference saves {percent_text(tuned['saved'])} of the full network's MACs when every client leaves "
        f"at the confidence that it chose on its validation samples, allowing {points_text(summary['accuracy_loss'])} "
        f"to be lost there; accuracy {_change(tuned['accuracy'], full)}. With one confidence for all, {kind}, it saves "
        f"{percent_text(common['saved'])}; accuracy {_change(common['accuracy'], full)}.{caution}"
    )


def client_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table under `HEAD`."""
    sampled, macs = summary["sampled"], summary["exit_macs"]
    shares = [exit_shares(summary[kind]["exit_histogram"]) for kind in ("tuned", "common")]
    rows = [
        [f"exit {e + 1}", _spread_at(summary, e), _spread_at(sampled, e), f"{macs[e] / 1e6:.3f}",
         *(percent_text(share[e]) for share in shares)]
        for e in range(len(summary["exits"]))
    ]  # fmt: skip
    rows.append(["mean of exits", mean_text(summary), mean_text(sampled), "", "", ""])
    if "majority" in summary:
        rows.append(["majority class", percent_text(summary["majority"]), "", "", "", ""])
    names = (("full network", summary["curve"][-1]), ("tuned thresholds", summary["tuned"]))
    for name, point in (*names, ("common threshold", summary["common"])):
        accuracy = spread_text(point["accuracy"], point["spread"])
        rows.append([name, accuracy, "", f"{point['mean_macs'] / 1e6:.3f}", "", ""])
    return rows


def _spread_at(group: Mapping[str, Any], e: int) -> str:
    if e >= len(group.get("exits", ())):
        return "-"
    return spread_text(group["exits"][e], group["spread"][e])


def _change(now: float, full: float) -> str:
    return f"goes from {percent_text(full)} to {percent_text(now)} ({100 * (now - full):+.1f} points)"

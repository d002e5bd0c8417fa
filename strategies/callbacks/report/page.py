"""The report of one run: its texts and plots, put into `templates/run.html.md`."""

from collections.abc import Mapping

from common.config import Value
from strategies.callbacks.accuracy import above_majority, mean_text
from strategies.callbacks.report.clients import HEAD, client_plots, client_rows, saving_sentence
from strategies.callbacks.report.device_time import device_facts
from strategies.callbacks.report.plots import run_plots, term_plots
from strategies.callbacks.report.records import RunData, split_config
from strategies.callbacks.report.rendering import Table, render
from strategies.callbacks.units import bytes_text, percent_text, rejected_text, seconds_text

SHOWN_FAILURES = 200


def run_page(run: RunData) -> str:
    """Return the report of a run."""
    clients = run.clients
    failure_table, more_failures = _failures(run)
    changed, defaults = split_config(run)
    machine = {key: value for key, value in run.about.items() if value != ""}
    return render(
        "run.html.md",
        run=run,
        facts=_facts(run),
        saving=saving_sentence(clients) if clients else "",
        client_plots=client_plots(run),
        client_table=Table(HEAD, client_rows(clients) if clients else [], numbers=True),
        run_plots=run_plots(run),
        accuracy_table=_accuracies(run),
        failure_table=failure_table,
        more_failures=more_failures,
        data_table=_classes(run),
        changed_table=_values(changed, "changed from the default"),
        default_table=_values(defaults, "default"),
        machine_table=_values(machine, "machine"),
        term_plots=term_plots(run),
    )


def _facts(run: RunData) -> dict[str, str]:
    done = run.numbers[-1] if run.numbers else 0
    facts = {"rounds": f"{done} of {run.config.get('run.rounds', '?')}", "time": seconds_text(run.seconds)}
    facts |= device_facts(run)
    facts["traffic"] = bytes_text(sum(run.traffic("down")) + sum(run.traffic("up")))
    if run.on_server:
        facts["mean exit accuracy"] = percent_text(run.means[-1][1])
    if run.final:
        chosen, full = run.final["calibrated"], run.final["exit_macs"][-1]
        facts["calibrated accuracy"] = percent_text(chosen["accuracy"])
        facts["at a cost of"] = f"{percent_text(chosen['mean_macs'] / full)} of full MACs"
    if run.clients:
        facts["on clients"] = mean_text(run.clients)
        if above_majority(run.clients):
            facts["MACs saved by early exits"] = percent_text(run.clients["tuned"]["saved"])
    left, rejected = (sum(len(event.get(kind, ())) for event in run.rounds) for kind in ("failures", "rejected"))
    facts["clients left out"] = f"{left}{rejected_text(rejected)}"
    return facts


def _accuracies(run: RunData) -> Table:
    """Return the server's last accuracies; no rows when only the clients evaluated."""
    exits = run.evaluated[-1][1] if run.on_server else []
    if not run.final:
        rows = [[f"exit {e}", percent_text(accuracy)] for e, accuracy in enumerate(exits, start=1)]
        rows += [["mean", percent_text(sum(exits) / len(exits))]] if exits else []
        return Table(("", "accuracy"), rows, numbers=True)
    chosen, macs = run.final["calibrated"], run.final["exit_macs"]
    total = sum(chosen["exit_histogram"])
    thresholds = [*map(threshold_text, chosen["thresholds"]), "any"]
    if not chosen["thresholds"]:
        thresholds = ["by device"] * len(macs)
    rows = [
        [f"exit {e}", percent_text(a), percent_text(v), f"{m / 1e6:.3f}", threshold, percent_text(n / total)]
        for e, (a, v, m, threshold, n) in enumerate(
            zip(run.final["exits"], run.final["validation"], macs, thresholds, chosen["exit_histogram"], strict=True),
            start=1,
        )
    ]  # fmt: skip
    rows.append(["mean of exits", percent_text(run.final["mean"]), "", "", "", ""])
    rows.append(
        ["calibrated", percent_text(chosen["accuracy"]), "", f"{chosen['mean_macs'] / 1e6:.3f}", "", percent_text(1.0)]
    )
    head = ("", "test accuracy", "validation", "million MACs", "leaves at confidence", "leave here")
    return Table(head, rows, numbers=True)


def threshold_text(threshold: float | None) -> str:
    """Return a stored threshold as text: at an infinite one, null in JSON, no sample leaves."""
    return "never" if threshold is None else f"{threshold:.3f}"


def _failures(run: RunData) -> tuple[Table, int]:
    """Return the failures, and how many the table leaves out; a client that could not take part has no round."""
    refused = [["", str(client), reason] for client, reason in sorted(run.refused.items())]
    failed = [
        [str(event["round"]), client, f"rejected: {reason}" if int(client) in event.get("rejected", ()) else reason]
        for event in run.rounds
        for client, reason in event["failures"].items()
    ]
    table = Table(("round", "client", "reason"), [*refused, *failed[:SHOWN_FAILURES]])
    return table, max(0, len(failed) - SHOWN_FAILURES)


def _classes(run: RunData) -> Table:
    """Return each class with its samples per split; no rows when the run's folder does not say."""
    if run.data is None:
        return Table(("class",), [])
    return Table(("class", *run.data.counts), [[name, *map(str, row)] for name, row in run.data.rows()], numbers=True)


def _values(values: Mapping[str, Value], title: str) -> Table:
    return Table((title, "value"), [[key, "(empty)" if value == "" else str(value)] for key, value in values.items()])

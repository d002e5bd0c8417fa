"""The page: plain HTML and CSS in one file, for phone and desk, light and dark."""

from collections.abc import Iterable, Sequence
from html import escape

from common.config import Value
from strategies.callbacks.accuracy import mean_text
from strategies.callbacks.report.clients import HEAD, client_plots, client_rows, saving_sentence
from strategies.callbacks.report.plots import run_plots, term_plots
from strategies.callbacks.report.records import RunData, split_config
from strategies.callbacks.report.svg import Plot
from strategies.callbacks.units import bytes_text, percent_text, rejected_text, seconds_text

SHOWN_FAILURES = 200

CSS = """
:root { color-scheme: light dark; --ground: #f6f7f9; --card: #ffffff; --ink: #1d2530; --soft: #5c6773; --line: #e1e5ea;
  --bad: #b3261e; --good: #1c7a4d; }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --card: #1c2229; --ink: #e4e8ed; --soft: #9aa5b1;
  --line: #2d353e; --bad: #ff8a80; --good: #6fd39f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1.2rem 1rem 3rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
.soft, figcaption span { color: var(--soft); }
.bad { color: var(--bad); } .good { color: var(--good); }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(135px, 1fr)); gap: .7rem; margin: 1.1rem 0 0; }
.facts div, figure, .table { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.facts div { padding: .55rem .8rem; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.12rem; font-weight: 600; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: .9rem; }
.small { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figure { margin: 0; padding: .8rem .8rem .5rem; }
figcaption { font-weight: 600; margin: 0 .2rem .3rem; }
figcaption span { font-weight: 400; font-size: .85rem; display: block; }
svg { display: block; width: 100%; height: auto; }
.table { overflow-x: auto; margin-bottom: .9rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; padding: .38rem .8rem; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .82rem; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody th { font-weight: 500; }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--soft); margin: .2rem 0 .7rem; }
"""


def run_page(run: RunData) -> str:
    """Return the report of a run."""
    sections = [_facts(run)]
    if run.clients:
        sections.append(heading("On the clients") + _clients(run) + heading("The run"))
    sections.append(figures(run_plots(run)))
    if run.on_server:
        sections.append(heading("Final accuracy") + _accuracies(run))
    if any(event["failures"] for event in run.rounds) or run.refused:
        sections.append(heading("Failures") + _failures(run))
    sections.append(heading("Configuration") + _configuration(run))
    if terms := term_plots(run):
        sections.append(heading("What clients and method logged") + figures(terms, small=True))
    return document(f"{run.name}: {run.strategy}", _title(run) + "".join(sections))


def document(title: str, body: str) -> str:
    """Return the whole file."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def heading(text: str) -> str:
    """Return a section's heading."""
    return f"\n<h2>{escape(text)}</h2>\n"


def figures(plots: Sequence[Plot], *, small: bool = False) -> str:
    """Return plots side by side, as many as there is room for."""
    cards = (
        f"<figure><figcaption>{escape(p.title)}<span>{escape(p.note)}</span></figcaption>\n{p.svg}</figure>\n"
        for p in plots
    )
    return f'<div class="plots{" small" if small else ""}" style="margin-top:1.1rem">\n{"".join(cards)}</div>\n'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Return a table of plain texts; the first column names the row, columns in `numbers` stand right."""
    right = set(numbers)
    kinds = [' class="number"' if i in right else "" for i in range(len(head))]

    def cells(row: Sequence[str], tags: Sequence[str]) -> str:
        parts = zip(row, tags, kinds, strict=True)
        return "<tr>" + "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for text, tag, kind in parts) + "</tr>\n"

    top = cells(head, ["th"] * len(head))
    body = "".join(cells(row, ["th"] + ["td"] * (len(head) - 1)) for row in rows)
    return f'<div class="table"><table>\n<thead>{top}</thead>\n<tbody>{body}</tbody></table></div>\n'


def _title(run: RunData) -> str:
    network, data = run.config.get("network.name", "?"), run.config.get("data.name", "?")
    colour = "good" if run.status == "completed" else "bad"
    return (
        f'<h1>{escape(run.name)}</h1>\n<p class="soft" style="margin:.2rem 0">{escape(run.strategy)} on '
        f'{escape(str(data))} with {escape(str(network))} · <span class="{colour}">{escape(run.status)}</span></p>\n'
    )


def _facts(run: RunData) -> str:
    done = run.numbers[-1] if run.numbers else 0
    facts = {"rounds": f"{done} of {run.config.get('run.rounds', '?')}", "time": seconds_text(run.seconds)}
    facts["traffic"] = bytes_text(sum(run.traffic("down")) + sum(run.traffic("up")))
    if run.on_server:
        facts["mean exit accuracy"] = percent_text(run.means[-1][1])
    if run.final:
        chosen, full = run.final["calibrated"], run.final["exit_macs"][-1]
        facts["calibrated accuracy"] = percent_text(chosen["accuracy"])
        facts["at a cost of"] = f"{percent_text(chosen['mean_macs'] / full)} of full MACs"
    if run.clients:
        facts["on clients"] = mean_text(run.clients)
        facts["MACs saved by early exits"] = percent_text(run.clients["tuned"]["saved"])
    left, rejected = (sum(len(event.get(kind, ())) for event in run.rounds) for kind in ("failures", "rejected"))
    facts["clients left out"] = f"{left}{rejected_text(rejected)}"
    items = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f'<dl class="facts">{"".join(items)}</dl>\n'


def _clients(run: RunData) -> str:
    rows = client_rows(run.clients)
    return (
        f"<p>{escape(saving_sentence(run.clients))}</p>\n{figures(client_plots(run))}"
        f'<div style="margin-top:.9rem">{table(HEAD, rows, numbers=range(1, len(HEAD)))}</div>'
    )


def _accuracies(run: RunData) -> str:
    exits = run.evaluated[-1][1]
    if not run.final:
        rows = [[f"exit {e}", percent_text(accuracy)] for e, accuracy in enumerate(exits, start=1)]
        return table(("", "accuracy"), [*rows, ["mean", percent_text(sum(exits) / len(exits))]], numbers=(1,))
    chosen, macs = run.final["calibrated"], run.final["exit_macs"]
    total = sum(chosen["exit_histogram"])
    thresholds = [threshold_text(t) for t in [*chosen["thresholds"], None]]
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
    return table(head, rows, numbers=range(1, 6))


def threshold_text(threshold: float | None) -> str:
    """Return a threshold as text; the last exit has none, at an infinite one nobody leaves."""
    if threshold is None:
        return "any"
    return "never" if threshold == float("inf") else f"{threshold:.3f}"


def _failures(run: RunData) -> str:
    refused = [["", str(client), reason] for client, reason in sorted(run.refused.items())]
    failed = [
        [str(event["round"]), client, f"rejected: {reason}" if int(client) in event.get("rejected", ()) else reason]
        for event in run.rounds
        for client, reason in event["failures"].items()
    ]
    more = len(failed) - SHOWN_FAILURES
    note = f'<p class="soft">and {more} more, see metrics.jsonl</p>' if more > 0 else ""
    return table(("round", "client", "reason"), [*refused, *failed[:SHOWN_FAILURES]]) + note


def _configuration(run: RunData) -> str:
    changed, rest = split_config(run)
    about = {key: value for key, value in run.about.items() if value != ""}
    return (
        _values(changed, "changed from the default")
        + f"<details><summary>defaults ({len(rest)})</summary>{_values(rest, 'default')}</details>"
        + f"<details><summary>machine and versions</summary>{_values(about, 'machine')}</details>"
    )


def _values(values: dict[str, Value], title: str) -> str:
    return table((title, "value"), [[key, "(empty)" if value == "" else str(value)] for key, value in values.items()])

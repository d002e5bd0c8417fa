"""What a study leaves behind: `study.json`, `summary.csv`, `cells.csv` and `study.html` in its folder."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from common.storage.files import write_text
from server.commands.overrides import PATHS
from server.study.plan import Cell, Study
from strategies.callbacks.report import write_comparison
from strategies.callbacks.report.measures import Group, mean_of_exits, measures, paired_gain, spread
from strategies.callbacks.report.records import RunData, load_run

FEW = 3  # seeds below which a spread says little


Sections = Mapping[str, Sequence[Group]]  # a heading for each point of the grid, and there a group for each variant


def read_sections(cells: Sequence[Cell]) -> Sections:
    """Return the runs of cells that completed; raises `UserError` for a folder that holds no run."""
    found: dict[str, dict[str, dict[int, RunData]]] = {}
    for cell in cells:
        found.setdefault(cell.heading, {}).setdefault(cell.variant, {})[cell.seed] = load_run(cell.folder)
    return {heading: [Group(variant, runs) for variant, runs in groups.items()] for heading, groups in found.items()}


def write_results(study: Study, cells: Sequence[Cell], sections: Sections, folder: Path) -> None:
    """Write the results of the cells that completed."""
    runs = [(cell, group.runs[cell.seed]) for cell in cells for group in sections[cell.heading]
            if group.label == cell.variant]  # fmt: skip
    points = {cell.heading: dict(cell.point) for cell in cells}
    rows = [_row(group, groups[0], points[heading]) for heading, groups in sections.items() for group in groups]
    content = {
        "name": study.name,
        # where a machine has its files says nothing of the results, and may not go to others
        "settings": {key: value for key, value in study.settings.items() if key not in PATHS},
        "grid": study.grid,
        "variants": study.variants,
        "seeds": list(study.seeds),
        "summary": rows,
        "cells": [_cell(cell, run) for cell, run in runs],
        "about": runs[0][1].about if runs else {},
    }
    write_text(folder / "study.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "summary.csv", _csv([_flat_row(row) for row in rows]))
    write_text(folder / "cells.csv", _csv([_cell_row(cell, run) for cell, run in runs]))
    write_comparison(sections, folder / "study.html", study.name)


def saving(sections: Sections) -> str:
    """Return what early exits save, of the group with the best calibrated accuracy; "" without calibrated exits."""
    measured = [
        (f"{group.label} ({heading})" if heading else group.label, finals)
        for heading, groups in sections.items()
        for group in groups
        if (finals := [run.final for run in group.all if run.final.get("calibrated")])
    ]
    if not measured:
        return ""
    name, finals = max(measured, key=lambda pair: fmean([f["calibrated"]["accuracy"] for f in pair[1]]))
    accuracy, last = fmean([f["calibrated"]["accuracy"] for f in finals]), fmean([f["exits"][-1] for f in finals])
    share = fmean([f["calibrated"]["mean_macs"] / f["exit_macs"][-1] for f in finals])
    return (
        f"Early exits save {100 * (1 - share):.0f} % of the computation here: {name} is right on "
        f"{100 * accuracy:.1f} % of the test samples with {100 * share:.0f} % of the network's MACs, its last exit "
        f"alone on {100 * last:.1f} % with all of them."
    )


def _row(group: Group, base: Group, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group's numbers: mean, deviation and values by seed of each, and the gain over the base's mean."""
    found = {m.name.strip(): spread(group, m.value) for m in measures(group.all)}
    gain = None if group is base else paired_gain(group, base, mean_of_exits)
    return {
        "variant": group.label,
        "point": point,
        "seeds": sorted(group.runs),
        "measures": {name: asdict(value) for name, value in found.items() if value},
        "over": base.label,
        "gain": asdict(gain) if gain else None,
    }


def _cell(cell: Cell, run: RunData) -> dict[str, Any]:
    """Return one run's numbers as its metrics have them, without the curves of a whole sweep."""
    last = run.rounds[-1] if run.rounds else {}
    return {
        "variant": cell.variant,
        "point": dict(cell.point),
        "seed": cell.seed,
        "run": cell.folder.name,
        "accuracy": _without_curves(run.final or last.get("accuracy", {})),
        "client_accuracy": _without_curves(run.clients),
        "means": dict(run.means),
        "terms": {k: v for k, v in last.get("terms", {}).items() if isinstance(v, int | float | list)},
        "seconds": run.seconds,
        "device_seconds": run.device_seconds if run.timed else None,
        "bytes": {way: sum(run.traffic(way)) for way in ("down", "up")},
        "left_out": sum(len(event["failures"]) for event in run.rounds),
    }


def _without_curves(measured: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the sweeps over thresholds, which a run's own folder keeps."""
    kept = {key: value for key, value in measured.items() if key not in ("budgeted", "curve")}
    return {key: _without_curves(value) if isinstance(value, Mapping) else value for key, value in kept.items()}


def _flat_row(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {"variant": row["variant"], **row["point"], "seeds": len(row["seeds"])}
    for name, value in row["measures"].items():
        flat |= {name: value["mean"], f"{name}, deviation": value["deviation"]}
    gain = row["gain"] or {}
    low, high = gain.get("interval") or (None, None)
    return flat | {
        "gain over": row["over"] if gain else None, "gain": gain.get("mean"), "gain, deviation": gain.get("deviation"),
        "gain, 95 % from": low, "gain, 95 % to": high,
    }  # fmt: skip


def _cell_row(cell: Cell, run: RunData) -> dict[str, Any]:
    own = {measure.name.strip(): measure.value(run) for measure in measures([run])}
    return {"variant": cell.variant, **cell.point, "seed": cell.seed, "run": cell.folder.name, **own}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV, with every column that any of them has; a missing number is an empty field."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

"""A round's numbers by name, as experiment trackers take them."""

from collections.abc import Mapping
from typing import Any

from strategies.engine.rounds import Record


def scalars(record: Record) -> dict[str, float]:
    """Return a record's numbers by name, `group/name`."""
    accuracy = _by_exit(record.accuracy)
    if chosen := record.accuracy.get("calibrated"):
        accuracy |= {"calibrated": chosen["accuracy"], "calibrated-macs": chosen["mean_macs"]}
    on_clients = _by_exit(record.client_accuracy)
    if summary := record.client_accuracy:
        tuned = summary["tuned"]
        on_clients |= {
            "majority": summary["majority"],
            "spread": summary["mean_spread"],
            "tuned": tuned["accuracy"],
            "tuned-saved": tuned["saved"],
        }
        if sampled := summary["sampled"]:
            on_clients |= {"sampled-mean": sampled["mean"], "sampled-spread": sampled["mean_spread"]}
    groups: dict[str, Mapping[Any, Any]] = {
        "accuracy": accuracy,
        "client-accuracy": on_clients,
        "clients": record.client_metrics,
        "method": record.terms,
        "seconds": record.seconds,
        "bytes": record.traffic,
        "device": {**record.device, **_parts(record.device)},
        "folded": {f"depth-{depth}": number for depth, number in record.clients.items()},
        "failures": {"clients": len(record.failures), "rejected": len(record.rejected), "late": len(record.late)},
    }
    return {
        f"{group}/{name}": float(value)
        for group, values in groups.items()
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _parts(device: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part's clients by name."""
    parts = device.get("by_part", {})
    return {f"part-{part}-{name}": value for part, sums in parts.items() for name, value in sums.items()}


def _by_exit(measured: Mapping[str, Any]) -> dict[str, float]:
    """Return the accuracy of each exit and their mean; empty when nothing was measured."""
    if not measured:
        return {}
    return {f"exit-{e}": value for e, value in enumerate(measured["exits"], start=1)} | {"mean": measured["mean"]}

"""A round's accuracy as numbers and as text, measured by the server or by the clients."""

from collections.abc import Mapping
from typing import Any

from strategies.callbacks.units import percent_text, spread_text


def exit_accuracies(on_server: Mapping[str, Any], on_clients: Mapping[str, Any]) -> list[float]:
    """Return the accuracy of each exit in [0, 1], shallow to deep; empty without an evaluation.

    Args:
        on_server: a record's `accuracy`, on test images; it takes precedence.
        on_clients: a record's `client_accuracy`, means over the clients on their own samples.
    """
    return list((on_server or on_clients).get("exits", []))


def mean_text(group: Mapping[str, Any]) -> str:
    """Return a group of clients' mean over exits with its spread, such as 60.0 ± 4.2 %; "-" for an empty group."""
    return spread_text(group["mean"], group["mean_spread"]) if group else "-"


def tuned_text(on_clients: Mapping[str, Any]) -> str:
    """Return accuracy and cost at the clients' own thresholds, from a record's `client_accuracy`."""
    tuned = on_clients["tuned"]
    accuracy, share = spread_text(tuned["accuracy"], tuned["spread"]), percent_text(tuned["share"])
    return f"{accuracy} at {share} of full MACs"


def above_majority(on_clients: Mapping[str, Any]) -> bool:
    """Return whether the clients' networks are more accurate than each client's most frequent class.

    The mean over exits must be above it by more than the accuracy that early exits may lose: what is less is no proof
    that the networks look at their input, and leaving early then saves MACs for nothing.
    """
    # a run of an older version did not measure it
    return bool(on_clients) and bool(on_clients["mean"] > on_clients.get("majority", 0.0) + on_clients["accuracy_loss"])


def majority_text(on_clients: Mapping[str, Any]) -> str:
    """Return the majority-class score, and whether the networks are within its reach."""
    note = "" if above_majority(on_clients) else ": the networks are not clearly better"
    return f"{percent_text(on_clients['majority'])}{note}"


def samples_text(on_clients: Mapping[str, Any]) -> str:
    """Return the samples on which the clients were evaluated, from a record's `client_accuracy`."""
    clients, without = on_clients["clients"], on_clients["without_test"]
    if without == clients:
        return "the clients' own validation samples"
    note = f" ({without} of {clients} clients have none and use their validation samples)" if without else ""
    return f"the clients' own test samples{note}"

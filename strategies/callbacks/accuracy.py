"""Accuracy per exit of a round, whoever measured it."""

from collections.abc import Mapping
from typing import Any

PREFIX = "exit-"


def exit_accuracies(on_server: Mapping[str, Any], on_clients: Mapping[str, float]) -> list[float]:
    """Return the accuracy of each exit in [0, 1], shallow to deep; empty when nobody evaluated.

    Args:
        on_server: a record's `accuracy`, on test images; it comes first.
        on_clients: a record's `client_accuracy`, on the clients' own validation images.
    """
    if on_server:
        return list(on_server["exits"])
    numbers = sorted(int(key.removeprefix(PREFIX)) for key in on_clients if key.startswith(PREFIX))
    return [on_clients[f"{PREFIX}{number}"] for number in numbers]

"""Records of rounds with numbers that are easy to add up."""

from typing import Any

from strategies.callbacks.base import Record


def record(round_: int, rounds: int = 3, **fields: Any) -> Record:
    """A round with two exits; accuracy grows by a tenth per round."""
    values: dict[str, Any] = {
        "clients": {1: 2, 2: 1},
        "client_metrics": {"loss": 2.0 / round_},
        "accuracy": {"exits": [0.1 * round_, 0.2 * round_], "mean": 0.15 * round_, "validation": [0.1, 0.2]},
        "terms": {"generator-1-label": 1.0, "generator-2-label": 2.0, "weights": [0.5, 0.5]},
        "seconds": {"clients": 1.0, "server": 0.5, "round": 2.0},
        "traffic": {"down": 3_000_000, "up": 1_000_000},
    }
    return Record(round_, rounds, **(values | fields))


def final_record(round_: int, rounds: int = 3) -> Record:
    """The last round, with the cost curve."""
    accuracy = record(round_, rounds).accuracy | {
        "exit_macs": [1e6, 4e6],
        "budgeted": [
            {"p": 0.1, "mean_macs": 3e6, "accuracy": 0.55, "thresholds": [0.9]},
            {"p": 0.2, "mean_macs": 2e6, "accuracy": 0.45, "thresholds": [float("inf")]},
        ],
        "calibrated": {"thresholds": [0.75], "accuracy": 0.58, "mean_macs": 3e6, "exit_histogram": [25, 75]},
    }
    return record(round_, rounds, accuracy=accuracy)

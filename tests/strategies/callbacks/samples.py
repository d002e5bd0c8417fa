"""Records of rounds with numbers that are easy to add up."""

from typing import Any

import numpy as np

from strategies.client_evaluation import THRESHOLDS, summarise
from strategies.engine.rounds import Record


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


def device_time(round_: int, energy: float | None = 30.0, clock: str = "simulated") -> dict[str, Any]:
    """A round of 4 s on the devices: two clients of part 1 wait for the one of part 2."""
    return {
        "clock": clock, "seconds": 4.0, "total": 4.0 * round_, "energy": energy,
        "by_part": {
            1: {"clients": 2, "busy": 2.0, "link": 0.5, "idle": 6.0},
            2: {"clients": 1, "busy": 4.0, "link": 1.0, "idle": 0.0},
        },
    }  # fmt: skip


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


def client_summary(gain: int = 0, own_test: int = 1) -> dict[str, Any]:
    """Two clients with ten samples per split, of which client 1 was sampled.

    Below 0.7 all leave at the first exit, which gets 4 and 6 + gain right, from there on at the last: 6 and 8 + gain.
    Client 0 is tuned to the full network, client 1 to 0.65: it saves 75 % of its MACs and loses two tenths.
    """
    scores = {}
    for client, (first, last) in enumerate(((4, 6), (6 + gain, 8 + gain))):
        sweep = np.zeros((2, len(THRESHOLDS), 2, 2), dtype=np.int64)
        sweep[:, :4, 0], sweep[:, 4:, 1] = (10, first), (10, last)
        row = (len(THRESHOLDS) - 1, 3)[client]
        scores[client] = {
            "exits": np.array([first, last]), "examples": np.array([10, 10]), "sweep": sweep, "tuned": sweep[1, row],
            "threshold": np.array([THRESHOLDS[row]]), "own_test": np.array([own_test]),
            "majority": np.array([2 + 2 * client]),
        }  # fmt: skip
    return summarise(scores, {1}, dict.fromkeys(scores, (1e6, 4e6)), 0.01)


def client_record(round_: int, rounds: int = 3, **fields: Any) -> Record:
    """A round in which the clients alone evaluated; the second one gets better."""
    return record(round_, rounds, **({"accuracy": {}, "client_accuracy": client_summary(round_ - 1)} | fields))

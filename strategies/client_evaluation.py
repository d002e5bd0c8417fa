"""Personalised evaluation: every client measures its own network on its own samples, the server sums up.

A sample leaves at the first exit whose confidence reaches a threshold, the same one at every exit: the largest softmax
probability (the dynamic inference of CAFEDistill, Liu et al., arXiv 2601.10015) or whatever the method's measure is. A
client chooses its threshold on its validation split and applies it to its test split. What it sends are counts, so
nothing is rounded on the way.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.data.clients import ClientData
from common.exits import ThresholdPolicy, collect_logits, correct_counts, exit_predictions

# At the last one no sample leaves early: the full network, where every curve ends.
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, math.inf)
# Unlike a probability, this confidence is near 0 for most samples of a weak exit; at 0 all samples leave
ENTROPY_THRESHOLDS = (*(step / 20 for step in range(20)), math.inf)
BATCH = 256
SCORE_BYTES = 1 << 16  # of what a client sends, at most: 90 exits
VALIDATION, TEST = 0, 1  # rows of "sweep" and "examples"

Scores = Mapping[str, NDArray[Any]]
Counts = NDArray[np.int64]  # (E, 2): samples that leave at each exit, and how many of them are right
Floats = NDArray[np.float64]


def score(
    network: nn.Module,
    data: ClientData,
    costs: Sequence[float],
    accuracy_loss: float,
    measure: str = "softmax",
) -> dict[str, NDArray[Any]]:
    """Measure a client's network of E exits on its own samples.

    A client without a test split is measured on its validation split, and its threshold is chosen there too.

    Args:
        network: the client's own.
        data: the client's own.
        costs: MACs of a sample that leaves at each exit, `E` numbers.
        accuracy_loss: how much validation accuracy the chosen threshold may cost, 0.01 = one point.
        measure: of confidence, see `common.exits.confidence`.

    Returns:
        Nothing for a client without samples, else, int64 unless noted:
        "exits" `(E,)`: test samples that each exit gets right;
        "examples" `(2,)`: number of validation and of test samples;
        "sweep" `(2, T, E, 2)`: on validation and on test, at each of the T `thresholds`: how many leave at each exit
        and how many of them are right;
        "tuned" `(E, 2)`: the same on test at the chosen threshold, the cheapest on validation that is accurate
        enough; the infinite one when there is no validation sample;
        "threshold" `(1,)` float64: the chosen one;
        "own_test" `(1,)`: 1, or 0 if validation samples stand in for test samples;
        "majority" `(1,)`: test samples of the class that is most frequent among the client's other samples.
    """
    held_out = _logits(network, data.validation_x, data.validation_y, len(costs))
    own_test = len(data.test_y) > 0
    test = _logits(network, data.test_x, data.test_y, len(costs)) if own_test else held_out
    examples = np.array([len(held_out[1]), len(test[1])], dtype=np.int64)
    if examples[TEST] == 0:
        return {}
    sweep = np.stack([_sweep(*held_out, measure), _sweep(*test, measure)])
    tried = thresholds(measure)
    chosen = len(tried) - 1
    if examples[VALIDATION]:
        left, right = np.moveaxis(sweep[VALIDATION].astype(np.float64), -1, 0)
        chosen = cheapest(left @ np.asarray(costs), right.sum(1) / examples[VALIDATION], accuracy_loss)
    return {
        "exits": correct_counts(*test).numpy(),
        "examples": examples,
        "sweep": sweep,
        "tuned": sweep[TEST, chosen],
        "threshold": np.array([tried[chosen]], dtype=np.float64),
        "own_test": np.array([int(own_test)], dtype=np.int64),
        "majority": np.array([_majority(data, test[1])], dtype=np.int64),
    }


def thresholds(measure: str) -> tuple[float, ...]:
    """Return the confidences that are tried, rising; the last is infinite."""
    return ENTROPY_THRESHOLDS if measure == "entropy" else THRESHOLDS


def cheapest(costs: Floats, accuracies: Floats, accuracy_loss: float) -> int:
    """Return which of the T thresholds costs least and loses at most `accuracy_loss` against the full network.

    Of equally cheap ones it is the most accurate, and of those the highest. Both arrays are `(T,)`.
    """
    # the tiny addend keeps a loss that is allowed on paper from failing in floating point
    enough = np.flatnonzero(accuracies >= accuracies[-1] - accuracy_loss - 1e-9)
    return int(min(enough, key=lambda t: (costs[t], -accuracies[t], -t)))


def check(arrays: Scores, exits: int, measure: str = "softmax") -> None:
    """Raise `ValueError` unless these arrays can be `score`'s result for a network of at most `exits` exits."""
    tried = thresholds(measure)
    depth = arrays["sweep"].shape[2] if "sweep" in arrays and arrays["sweep"].ndim == 4 else 0
    if not 1 <= depth <= exits:
        raise ValueError(f"client evaluation: no sweep over 1 to {exits} exits")
    shapes = {
        "exits": (depth,), "examples": (2,), "sweep": (2, len(tried), depth, 2), "tuned": (depth, 2),
        "threshold": (1,), "own_test": (1,), "majority": (1,),
    }  # fmt: skip
    for name, shape in shapes.items():
        kind = np.float64 if name == "threshold" else np.int64
        if name not in arrays or arrays[name].shape != shape or arrays[name].dtype != kind:
            raise ValueError(f"client evaluation: {name!r} is not {np.dtype(kind)} of shape {shape}")
    examples, sweep = arrays["examples"], arrays["sweep"]
    counted = (
        examples[TEST] > 0
        and (sweep >= 0).all()
        and (sweep[..., 1] <= sweep[..., 0]).all()
        and (sweep[..., 0].sum(-1) == examples[:, None]).all()
        and (arrays["exits"] >= 0).all()
        and (arrays["exits"] <= examples[TEST]).all()
        and arrays["own_test"][0] in (0, 1)
        and 0 <= arrays["majority"][0] <= examples[TEST]
    )
    if not counted:
        raise ValueError("client evaluation: the counts do not add up to the samples")
    threshold = float(arrays["threshold"][0])
    if threshold not in tried or not np.array_equal(arrays["tuned"], sweep[TEST, tried.index(threshold)]):
        raise ValueError("client evaluation: 'tuned' is not what the sweep says of the threshold")


def summarise(
    scores: Mapping[int, Scores],
    sampled: Collection[int],
    exit_macs: Mapping[int, Sequence[float]],
    accuracy_loss: float,
    measure: str = "softmax",
) -> dict[str, Any]:
    """Return the clients' evaluation as plain values; every client counts alike, whatever its number of samples.

    Clients may have different numbers of exits: an exit's mean is over those that have it. The order of `scores` does
    not matter. Spreads are population standard deviations over clients; accuracies and shares are in [0, 1].

    Args:
        scores: client -> `score`'s result, which `check` accepts; clients without samples are passed over.
        sampled: clients that were sampled for training at least once.
        exit_macs: client -> MACs of a sample that leaves at each exit of its network.
        accuracy_loss: how much validation accuracy early exits may cost, 0.01 = one point.
        measure: of confidence, with which the clients scored.

    Returns:
        Nothing without any client that has samples, else
        "clients", "exits", "spread" (both per exit), "mean", "mean_spread" (of a client's mean over its exits);
        "sampled": these five for the clients in `sampled`, empty if none of them is here;
        "own_test": whether all were measured on test samples; "without_test": how many were not;
        "exit_macs", the mean over clients; "accuracy_loss";
        "majority": the accuracy of always answering a client's most frequent class: on skewed data a network that has
        learned nothing else reaches it;
        "curve": a point per threshold, cheap to dear, the last (threshold None) the full network:
        "threshold", "accuracy", "spread", "mean_macs", "share" (of the MACs of a client's own last exit),
        "saved" (1 - share), "exit_histogram" (test samples of all clients that leave at each exit);
        "common": the point of the cheapest threshold that, taken by all clients, loses at most `accuracy_loss` of the
        mean validation accuracy; "tuned": such a point without "threshold", each client at its own. Both also have
        "full_accuracy", that of the last exit.
    """
    ids = [client for client in sorted(scores) if scores[client]]
    if not ids:
        return {}
    clients = [scores[i] for i in ids]
    macs = [np.array(exit_macs[i][: len(scores[i]["exits"])], dtype=np.float64) for i in ids]
    accuracies = {i: scores[i]["exits"] / scores[i]["examples"][TEST] for i in ids}
    curve = [
        {"threshold": None if math.isinf(threshold) else threshold}
        | _operate([c["sweep"][TEST, t] for c in clients], macs)
        for t, threshold in enumerate(thresholds(measure))
    ]
    full = {"full_accuracy": curve[-1]["accuracy"]}
    without_test = sum(1 - int(c["own_test"][0]) for c in clients)
    return {
        **_group(list(accuracies.values())),
        "sampled": _group([accuracy for client, accuracy in accuracies.items() if client in sampled]),
        "own_test": without_test == 0,
        "without_test": without_test,
        "exit_macs": [float(np.mean(column)) for column in _by_exit(macs)],
        "accuracy_loss": accuracy_loss,
        "majority": float(np.mean([c["majority"][0] / c["examples"][TEST] for c in clients])),
        "curve": curve,
        "tuned": _operate([c["tuned"] for c in clients], macs) | full,
        "common": curve[_common_threshold(clients, macs, accuracy_loss)] | full,
    }


def _logits(network: nn.Module, x: Tensor, y: Tensor, exits: int) -> tuple[Tensor, Tensor]:
    """Return all exits' logits (E, N, C) and the labels (N,) on the CPU, also when there is no sample."""
    if not len(y):
        return torch.empty(exits, 0, 1), y.cpu()
    rows = (slice(start, start + BATCH) for start in range(0, len(y), BATCH))
    return collect_logits(network, ((x[r], y[r]) for r in rows))


def _majority(data: ClientData, tested: Tensor) -> int:
    """Return how many of the tested labels (N,) are the class that the client's other samples have most often."""
    seen = torch.cat([data.y, data.validation_y]).cpu()
    return int((tested == torch.bincount(seen).argmax()).sum()) if len(seen) else 0


def _sweep(logits: Tensor, labels: Tensor, measure: str) -> NDArray[np.int64]:
    """Return counts `(T, E, 2)`: samples that leave at each exit, and how many of them are right."""
    exits = len(logits)
    rows: list[Tensor] = []
    for threshold in thresholds(measure):
        left = ThresholdPolicy((threshold,) * (exits - 1), measure).exits(logits)
        right = left[exit_predictions(logits, left) == labels]
        rows.append(torch.stack([torch.bincount(left, minlength=exits), torch.bincount(right, minlength=exits)], 1))
    return torch.stack(rows).numpy()


def _common_threshold(clients: Sequence[Scores], macs: Sequence[Floats], accuracy_loss: float) -> int:
    held_out = [
        (c["sweep"][VALIDATION], own) for c, own in zip(clients, macs, strict=True) if c["examples"][VALIDATION]
    ]
    if not held_out:
        return -1
    own_macs = [own for _, own in held_out]
    points = [_operate([sweep[t] for sweep, _ in held_out], own_macs) for t in range(len(held_out[0][0]))]
    costs, accuracies = ([p[key] for p in points] for key in ("mean_macs", "accuracy"))
    return cheapest(np.array(costs), np.array(accuracies), accuracy_loss)


def _group(accuracies: Sequence[Floats]) -> dict[str, Any]:
    """Return the means and spreads of clients' exit accuracies `(E_i,)`; empty without clients."""
    if not accuracies:
        return {}
    by_exit = _by_exit(accuracies)
    means = np.array([a.mean() for a in accuracies])
    return {
        "clients": len(accuracies),
        "exits": [float(a.mean()) for a in by_exit],
        "spread": [float(a.std()) for a in by_exit],
        "mean": float(means.mean()),
        "mean_spread": float(means.std()),
    }


def _by_exit(values: Sequence[Floats]) -> list[Floats]:
    """Return, per exit, the values of the clients that have it, from one `(E_i,)` per client."""
    deepest = max(map(len, values))
    return [np.array([v[e] for v in values if len(v) > e]) for e in range(deepest)]


def _operate(counts: Sequence[Counts], macs: Sequence[Floats]) -> dict[str, Any]:
    """Return what dynamic inference costs and gives, from one `(E_i, 2)` and one `(E_i,)` per client."""
    samples = np.array([c[:, 0].sum() for c in counts])
    accuracy = np.array([c[:, 1].sum() for c in counts]) / samples
    cost = np.array([c[:, 0] @ own for c, own in zip(counts, macs, strict=True)]) / samples
    share = cost / np.array([own[-1] for own in macs])
    histogram = np.zeros(max(map(len, counts)), dtype=np.int64)
    for c in counts:
        histogram[: len(c)] += c[:, 0]
    return {
        "accuracy": float(accuracy.mean()),
        "spread": float(accuracy.std()),
        "mean_macs": float(cost.mean()),
        "share": float(share.mean()),
        "saved": float(1.0 - share.mean()),
        "exit_histogram": histogram.tolist(),
    }

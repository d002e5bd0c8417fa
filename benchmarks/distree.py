"""DistrEE on CIFAR-10: accuracy of every exit, and accuracy against MACs for every exit policy.

    python -m server teacher --out runs/teacher -c data.name=cifar10 -c data.root=/data/cifar10 \
        -c network.name=wrn16 -c network.width=4 --epochs 8 --autocast
    python -m server students --teacher runs/teacher --out runs/students -c data.name=cifar10 \
        -c data.root=/data/cifar10 -c network.name=wrn16 --epochs 8 --autocast
    python -m benchmarks.distree runs/students [more such folders]

Thresholds are fitted on validation images; the figures are those of the test images.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.common import save
from common.data import DataConfig, client_split, load
from common.exits import BUDGET_SWEEP
from server.commands.distree.students import VALIDATION
from strategies.distree.exits.calibration import Answers, fit, operate, sweep_fractions, within
from strategies.distree.exits.policies import (
    FeatureDifference,
    NeighbourSimilarity,
    Policies,
    Random,
    diff_cos,
    oracle_exits,
)
from strategies.distree.exits.scores import ScorePolicy
from strategies.distree.model.stored import load_students
from strategies.distree.training.finish import comparable_policies, measure

SAVINGS = (0.2, 0.276, 0.4)  # of all MACs; the paper saves 27.6 %
PAPER = {"exits": [0.47, 0.66, 0.73, 0.79, 0.87, 0.89, 0.91], "accuracy": 0.91, "saved": 0.276}
MAX_LOSS = 0.01  # of the calibrated thresholds
SEED = 1  # of the split in `server students`
Fitted = Callable[[float], Policies]


def main() -> None:
    """Measure every folder of students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--name", default="distree_cifar10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    root = Path(os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve() / "cifar10"
    source = load(DataConfig(name="cifar10", root=str(root)), None)
    held_out = source.train.subset(client_split(np.arange(len(source.train)), VALIDATION, SEED, 0).validation)
    result: dict[str, Any] = {"paper": PAPER}
    for folder in options.folders:
        stored = load_students(folder)
        validation, test = (
            measure(stored.students, images, stored.normalizer, torch.device("cpu"))
            for images in (held_out, source.test)
        )
        result[folder.name] = {
            "training": json.loads((folder / "report.json").read_text()),
            "sizes": [len(part) for part in stored.students.spec.partition],
            **study(validation, test, comparable_policies(validation, MAX_LOSS)),
        }
        print(folder.name, json.dumps(result[folder.name]["exits"]), flush=True)
    print(save(options.name, result))


def study(validation: Answers, test: Answers, policies: Mapping[str, Policies]) -> dict[str, Any]:
    """Return the test accuracy of every exit, of every named policy, and each kind's curve."""
    logits = torch.stack(list(test.votes().values())).sum(0)
    full = sum(costs[-1] for costs in test.costs.values())
    ways: dict[str, Fitted] = {
        "difference": _scored(FeatureDifference, validation),
        "neighbour": _scored(NeighbourSimilarity, validation),
        "random": lambda p: {
            k: Random(tuple(sweep_fractions(len(f), p, 1).tolist()), seed=k) for k, f in validation.features.items()
        },
    }
    return {
        "full_macs": full,
        "rank_area": rank_area(test),
        "exit_macs": {k: list(costs) for k, costs in test.costs.items()},
        "exits": (logits.argmax(-1) == test.labels).double().mean(1).tolist(),
        "policies": {name: _point(chosen, test, full) for name, chosen in policies.items()}
        | {"oracle": _oracle(test, full)},
        "curves": {name: [{"p": p, **_point(way(p), test, full)} for p in BUDGET_SWEEP] for name, way in ways.items()},
        "at_saving": {str(saving): _at_saving(saving, validation, test, full) for saving in SAVINGS},
    }


def rank_area(test: Answers) -> list[dict[str, Any]]:
    """Return, per exit from the second, how well scores rank its right answers before wrong ones (ROC area)."""
    logits = torch.stack(list(test.votes().values())).sum(0)
    right = logits.argmax(-1) == test.labels
    return [
        {
            "difference": {k: float(roc_auc_score(right[j], diff_cos(f[j], f[0]))) for k, f in test.features.items()},
            "softmax of the sum": float(roc_auc_score(right[j], logits[j].softmax(-1).amax(-1))),
        }
        for j in range(1, len(logits))
    ]


def _at_saving(saving: float, validation: Answers, test: Answers, full: float) -> dict[str, Any]:
    """Return how each kind of policy does at this saving on validation images.

    Random exits cost what feature difference costs.
    """
    target = (1 - saving) * full
    found: dict[str, Policies] = {
        kind.name: within(validation, target, kind=kind) for kind in (FeatureDifference, NeighbourSimilarity)
    }
    spent = operate(found[FeatureDifference.name], validation).cost
    shares = draws(spent, [sum(costs) for costs in zip(*validation.costs.values(), strict=True)])
    random: list[Policies] = [{k: Random(draw, seed=k) for k in validation.features} for draw in shares]
    found[Random.name] = max(random, key=lambda policies: operate(policies, validation).accuracy)
    return {name: _point(chosen, test, full) for name, chosen in found.items()}


def draws(cost: float, costs: Sequence[float]) -> Iterator[tuple[float, ...]]:
    """Yield shares of exits to draw from, so that a sample costs `cost` on average, where exits cost `costs`.

    The shares are those of a sweep; some samples go to the last exit instead, as many as reach that cost.
    """
    for begin in range(1, len(costs) - 1):
        for step in range(1, 98):
            shares = sweep_fractions(len(costs), step / 50, begin).tolist()
            drawn = sum(share * own for share, own in zip(shares, costs, strict=True)) / sum(shares)
            if drawn <= cost:
                kept = (costs[-1] - cost) / (costs[-1] - drawn)
                yield (*(kept * share for share in shares[:-1]), kept * shares[-1] + (1 - kept) * sum(shares))


def _scored(kind: type[ScorePolicy], validation: Answers) -> Fitted:
    return lambda p: {k: fit(kind, f, sweep_fractions(len(f), p, kind.first)) for k, f in validation.features.items()}


def _point(policies: Policies, answers: Answers, full: float) -> dict[str, Any]:
    point = operate(policies, answers)
    return {"saved": 1 - point.cost / full, **asdict(point)}


def _oracle(test: Answers, full: float) -> dict[str, Any]:
    logits = torch.stack(list(test.votes().values())).sum(0)
    exits = oracle_exits(logits, test.labels)
    rows = torch.arange(len(exits))
    cost = sum(torch.tensor(costs, dtype=torch.float64)[exits].mean().item() for costs in test.costs.values())
    accuracy = (logits[exits, rows].argmax(1) == test.labels).double().mean().item()
    return {
        "saved": 1 - cost / full,
        "accuracy": accuracy,
        "cost": cost,
        "histogram": exits.bincount(minlength=len(logits)).tolist(),
    }


if __name__ == "__main__":
    main()

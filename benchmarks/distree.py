"""DistrEE on CIFAR-10: accuracy of every exit, and of every rule by which samples leave, at equal cost.

    python -m server teacher --out runs/teacher -c data.name=cifar10 -c data.root=/data/cifar10 \
        -c network.name=wrn16 -c network.width=4 --epochs 8 --autocast
    for seed in 1 2; do
        python -m server students --teacher runs/teacher --out runs/seed-$seed --seed $seed -c data.name=cifar10 \
            -c data.root=/data/cifar10 -c network.name=wrn16 --epochs 5 --autocast
    done
    python -m benchmarks.distree runs/seed-1 runs/seed-2

One search chooses the thresholds of all rules, student by student, on validation images. "validation" are its figures
on validation images that it did not see (two halves in turns), by which the default rule is chosen; "test" are those of
the test images, with thresholds of all validation images.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from benchmarks.common import save
from benchmarks.distree_scores import NeighbourSimilarity
from common.data import DataConfig, load
from common.seeding import generator
from server.commands.distree.students import own_split
from strategies.distree.exits.calibration import Answers, cheapest, exits_of, sweep_fractions, with_gates, within
from strategies.distree.exits.policies import PUBLISHED, RULES, FeatureDifference, LastExit, Policies, Random
from strategies.distree.exits.policies import oracle_exits as first_right
from strategies.distree.exits.scores import ScorePolicy
from strategies.distree.model.stored import load_students
from strategies.distree.training.finish import measure

SAVINGS = (0.2, 0.276, 0.4, 0.6)  # of all MACs; the paper saves 27.6 %
PAPER = {"exits": [0.47, 0.66, 0.73, 0.79, 0.87, 0.89, 0.91], "accuracy": 0.91, "saved": 0.276}
MAX_LOSS = 0.01  # of the calibrated thresholds
SEED = 1  # of the halves
KINDS: Mapping[str, type[ScorePolicy]] = {**RULES, "neighbour": NeighbourSimilarity}
BASE = FeatureDifference.name  # what the others are compared with
LAST = LastExit.name
Asked = dict[str, dict[str, tuple[Tensor, Tensor]]]  # saving -> rule -> whether answers are right, and MACs, each (N,)


def main() -> None:
    """Measure every folder of students."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--name", default="distree_policies")
    options = parser.parse_args()
    runs, asked = dict[str, Any](), dict[str, list[Asked]]()
    with multiprocessing.get_context("spawn").Pool(len(options.folders)) as pool:  # a training takes minutes of a core
        for folder, (run, answered) in zip(options.folders, pool.imap(measured, options.folders), strict=True):
            runs[folder.name] = run
            for name, own in answered.items():
                asked.setdefault(name, []).append(own)
            print(folder.name, json.dumps(run["exits"]), flush=True)
    print(save(options.name, {"paper": PAPER, "runs": runs, "at_saving": {k: pooled(v) for k, v in asked.items()}}))


def measured(folder: Path) -> tuple[dict[str, Any], dict[str, Asked]]:
    """Return a training's settings and figures, and what `study` returns beside them, of a folder of students."""
    torch.set_num_threads(1)
    root = Path(os.environ.get("EARLYBLOOM_DATA", "../shared/data")).resolve() / "cifar10"
    stored, training = load_students(folder), json.loads((folder / "report.json").read_text())
    read = training["read"]
    source = load(DataConfig(name="cifar10", root=str(root), image_size=read["data.image-size"]), None)
    validation, test = (
        measure(stored.students, images, stored.normalizer, torch.device("cpu"))
        for images in (own_split(source, read["run.seed"])[1], source.test)
    )
    found, answered = study(with_gates(validation), test)
    spec = stored.students.spec
    run = {
        "training": training | {"read": {key: value for key, value in read.items() if key != "data.root"}},
        "sizes": [len(part) for part in spec.partition],
        "pooling": spec.backbones[0].pooling,
        "parameters": [sum(p.numel() for p in student.parameters()) for _, student in stored.students.numbered()],
        **found,
    }
    return run, answered


def study(validation: Answers, test: Answers) -> tuple[dict[str, Any], dict[str, Asked]]:
    """Return the figures of one training, and which images are answered right at every saving by every rule.

    Gates come with the validation answers, see `with_gates`.
    """
    full = sum(costs[-1] for costs in test.costs.values())
    halves = _halves(validation)
    last: Policies = {k: LastExit(len(f)) for k, f in test.features.items()}
    chosen = {str(saving): _at_saving((1 - saving) * full, validation) for saving in SAVINGS}
    answered: dict[str, Asked] = {
        "validation": {str(saving): _unseen((1 - saving) * full, halves) for saving in SAVINGS},
        "test": {
            saving: {name: _answered(own, test) for name, own in (rules | {LAST: last}).items()}
            for saving, rules in chosen.items()
        },
    }
    return {
        "full_macs": full,
        "exit_macs": {k: list(costs) for k, costs in test.costs.items()},
        "exits": {"validation": accuracies(validation), "test": accuracies(test)},
        "rank_area": {name: rank_area(own, validation) for name, own in (("validation", validation), ("test", test))},
        "lost_at": (test.right_at_last & ~test.right_at_exits).double().mean(1).tolist(),
        "at_saving": {
            saving: {name: point(policies, test, full) for name, policies in rules.items()}
            for saving, rules in chosen.items()
        },
        "calibrated": _calibrated([(validation, test)], full),
        "calibrated_unseen": _calibrated(halves, full),
        "oracle": _oracle(test, full),
        **_published(test, full),
    }, answered


def accuracies(answers: Answers) -> list[float]:
    """Return the accuracy with all students at the same exit, for each exit."""
    found: list[float] = answers.right_at_exits.double().mean(1).tolist()
    return found


def rank_area(answers: Answers, validation: Answers) -> dict[str, dict[str, list[float]]]:
    """Return, per rule and student, how well scores rank right answers before wrong ones (ROC area) at exits 2 to J-1.

    An answer is that of all students at this exit. Gates are those of the validation answers. "sum" is the softmax of
    the summed logits, which needs talk.
    """
    right = answers.right_at_exits.numpy()
    inner = range(1, len(right) - 1)
    found: dict[str, dict[str, list[float]]] = {}
    for name, kind in KINDS.items():
        scores = {k: answers.scores(validation.rule(kind, k), k) for k in answers.features}
        found[name] = {
            str(k): [float(roc_auc_score(right[j], np.nan_to_num(own[j].numpy(), posinf=1e9))) for j in inner]
            for k, own in scores.items()
        }
    surest = torch.stack(list(answers.votes().values())).sum(0).softmax(-1).amax(-1).numpy()
    return found | {"sum": {"all": [float(roc_auc_score(right[j], surest[j])) for j in inner]}}


def point(policies: Policies, answers: Answers, full: float) -> dict[str, Any]:
    """Return accuracy and saved share of the MACs, what was lost and gained against the last exit, and the exits."""
    exits, (rights, macs) = exits_of(policies, answers), _answered(policies, answers)
    right, last = rights > 0, answers.right_at_last
    return {
        "saved": 1 - macs.mean().item() / full,
        "accuracy": right.double().mean().item(),
        "last_right_exit_wrong": (last & ~right).double().mean().item(),
        "exit_right_last_wrong": (right & ~last).double().mean().item(),
        "histogram": {k: own.bincount(minlength=len(answers.features[k])).tolist() for k, own in exits.items()},
    }


def pooled(trainings: Sequence[Asked]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return each rule's accuracy at each saving, and its gain over feature difference, at equal cost.

    Thresholds reach a saving only roughly, and a point of the MACs is worth as much as a better rule. So each rule is
    brought to exactly the wanted cost: a random share of the images goes to the last exits instead, in expectation. A
    gain is a pair of mean and standard error, paired by image: of all trainings together, and of each.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for saving in trainings[0]:
        exact = [
            {name: _at_cost(own, one[saving][LAST], float(saving)) for name, own in one[saving].items() if name != LAST}
            for one in trainings
        ]
        for name in exact[0]:
            rights = torch.stack([one[name] for one in exact])
            gains = rights - torch.stack([one[BASE] for one in exact])
            found.setdefault(saving, {})[name] = {
                "accuracy": rights.mean().item(), "gain": _mean_and_error(gains.mean(0)),
                "each": [_mean_and_error(gain) for gain in gains],
                "saved_before": [1 - float(o[saving][name][1].mean() / o[saving][LAST][1].mean()) for o in trainings],
            }  # fmt: skip
    return found


def _at_cost(rule: tuple[Tensor, Tensor], last: tuple[Tensor, Tensor], saving: float) -> Tensor:
    """Return how often a rule is right on each image (N,) if it saves exactly this share of the last exits' MACs."""
    share = saving / (1 - float(rule[1].mean() / last[1].mean()))
    return share * rule[0] + (1 - share) * last[0]


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


def _at_saving(target: float, answers: Answers) -> dict[str, Policies]:
    """Return the most accurate policies of every rule, and of random exits, that cost at most `target`."""
    found: dict[str, Policies] = {name: within(answers, target, kind) for name, kind in KINDS.items()}
    shares = draws(target, [sum(costs) for costs in zip(*answers.costs.values(), strict=True)])
    random: list[Policies] = [{k: Random(draw, seed=k) for k in answers.features} for draw in shares]
    return found | {"random": max(random, key=lambda policies: _answered(policies, answers)[0].mean().item())}


def _calibrated(asked: Sequence[tuple[Answers, Answers]], full: float) -> dict[str, Any]:
    """Return, per bound and rule, what calibration for MAX_LOSS saves and loses; of several pairs the mean.

    A pair is the answers that the thresholds are chosen on, and those that they are asked about.
    """
    found: dict[str, Any] = {}
    for title, errors in (("mean", 0.0), ("bound", 1.0)):
        for name, kind in KINDS.items():
            points = [point(cheapest(seen, MAX_LOSS, kind, errors), other, full) for seen, other in asked]
            found.setdefault(title, {})[name] = {
                key: sum(own[key] for own in points) / len(points) for key in points[0] if key != "histogram"
            }
    return found


def _halves(answers: Answers) -> list[tuple[Answers, Answers]]:
    """Return both halves of the answers, with gates of their own, each beside the other half."""
    rows = torch.randperm(len(answers.labels), generator=generator("halves", SEED)).chunk(2)
    one, other = (
        replace(
            answers, features={k: f[:, half] for k, f in answers.features.items()}, labels=answers.labels[half],
            gates={},
        )
        for half in rows
    )  # fmt: skip
    return [(with_gates(one), other), (with_gates(other), one)]


def _unseen(target: float, halves: Sequence[tuple[Answers, Answers]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, per rule, `_answered` of validation images, with thresholds and gates of the other half of them."""
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for seen, other in halves:
        last: Policies = {k: LastExit(len(f)) for k, f in seen.features.items()}
        for name, policies in (_at_saving(target, seen) | {LAST: last}).items():
            found.setdefault(name, []).append(_answered(policies, other))
    return {name: (torch.cat([r for r, _ in parts]), torch.cat([m for _, m in parts])) for name, parts in found.items()}


def _answered(policies: Policies, answers: Answers) -> tuple[Tensor, Tensor]:
    """Return whether the policies' answers are right, and their MACs, both float64 (N,)."""
    rows, votes, exits = torch.arange(len(answers.labels)), answers.votes(), exits_of(policies, answers)
    logits = torch.stack([votes[k][own, rows] for k, own in exits.items()]).sum(0)
    return (logits.argmax(1) == answers.labels).double(), _cost(answers, exits)


def _cost(answers: Answers, exits: Mapping[int, Tensor]) -> Tensor:
    """Return the MACs of every sample, float64 (N,)."""
    return torch.stack([torch.tensor(answers.costs[k], dtype=torch.float64)[own] for k, own in exits.items()]).sum(0)


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    return values.mean().item(), values.std(correction=0).item() / len(values) ** 0.5


def _published(answers: Answers, full: float) -> dict[str, Any]:
    """Return the operating point of the paper's thresholds, for students of 7 exits."""
    if {len(f) for f in answers.features.values()} != {len(PUBLISHED) + 1}:
        return {}
    return {"published": point(dict.fromkeys(answers.features, FeatureDifference(PUBLISHED)), answers, full)}


def _oracle(test: Answers, full: float) -> dict[str, Any]:
    logits = torch.stack(list(test.votes().values())).sum(0)
    exits: Tensor = first_right(logits, test.labels)
    right = (logits[exits, torch.arange(len(exits))].argmax(1) == test.labels).double()
    cost = _cost(test, dict.fromkeys(test.features, exits)).mean()
    return {"saved": 1 - float(cost) / full, "accuracy": right.mean().item()}


if __name__ == "__main__":
    main()

"""Thresholds for all students together, chosen on validation samples: for an accuracy loss, a cost or a latency.

The paper's thresholds are set by hand (DistrEE, Peng et al., arXiv 2502.15735); features of other heads have another
scale. Here they are fitted to fractions of samples, as in MSDNet's sweep (Huang et al., ICLR 2018). A loss is bounded
on one side, by the mean over validation samples plus one standard error: the chosen thresholds are those of many that
look best on these samples. A gate learns on the same samples, so its thresholds and operating points here come from
scores by gates that have not seen the sample (`gate_fit.py`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.exits import BUDGET_SWEEP, budget_fractions, fit_scores
from strategies.distree.exits.classifier import ColumnBlocks, OwnHeads, logits_at
from strategies.distree.exits.gate import gate_numbers
from strategies.distree.exits.gate_fit import FittedGate, check_samples, fit_gate
from strategies.distree.exits.policies import Classify, ExitPolicy, Gate, LastExit, Policies, ScorePolicy

Measure = Literal["cost", "slowest_mean", "slowest_p99"]  # a field of `Point`


@dataclass(frozen=True)
class Answers:
    """The features of K students for N labelled samples, and their cost; all on the CPU."""

    features: Mapping[int, Tensor]  # student -> F_{k,j} of all exits (J, N, |P_k|)
    labels: Tensor  # (N,)
    classifier: ColumnBlocks
    own: OwnHeads
    costs: Mapping[int, Sequence[float]]  # student -> cost of a sample that stops at each exit, J numbers
    # Student -> seconds that a sample waits for the device if it stops at each exit, measured R times (J, R), see
    # `serving/timing.py`; if empty, costs take the place of seconds
    seconds: Mapping[int, Tensor] = field(default_factory=dict)
    gates: Mapping[int, FittedGate] = field(default_factory=dict)  # student -> its gate, if fitted on these samples

    def __post_init__(self) -> None:
        if len(self.labels) == 0:
            raise UserError("there are no validation samples to choose exit thresholds on: set data.validation above 0")

    def classify(self, number: int) -> Classify:
        """Return what student `number` alone thinks."""
        columns = self.classifier.blocks[str(number)].detach(), self.classifier.bias.detach()
        heads = self.own.weights[str(number)].detach(), self.own.biases[str(number)].detach()

        def classify(exit_index: int, features: Tensor, own: bool = False) -> Tensor:
            return logits_at(heads if own else columns, exit_index, features)

        return classify

    def rule(self, kind: type[ScorePolicy], number: int) -> ScorePolicy:
        """Return a rule as student `number` uses it, with thresholds by which no sample leaves early."""
        never = (math.inf,) * (len(self.features[number]) - 1)
        return Gate(never, self.gates[number].weights) if kind is Gate else kind(never)

    def scores(self, rule: ScorePolicy, number: int) -> Tensor:
        """Return the scores of student `number`, float64 (J, N); a gate's by gates that have not seen the sample."""
        if isinstance(rule, Gate) and self.gates:
            return self.gates[number].scores
        return rule.scores(self.features[number], self.classify(number))

    def exits(self, policy: ExitPolicy, number: int, ids: Sequence[int]) -> Tensor:
        """Return the exit (from 0) of every sample of student `number`, int64 (N,), by the same scores."""
        if isinstance(policy, Gate):
            return policy.exits_by(self.scores(policy, number))
        return policy.exits(self.features[number], self.classify(number), ids)

    @cached_property
    def right_at_exits(self) -> Tensor:
        """Whether the answer is right with all students at the same exit, bool (J, N)."""
        return torch.stack(list(self.votes().values())).sum(0).argmax(-1) == self.labels

    @property
    def right_at_last(self) -> Tensor:
        """Whether the answer is right with all students at their last exits, bool (N,)."""
        return self.right_at_exits[-1]

    def votes(self) -> dict[int, Tensor]:
        """Return each student's share of the logits at all its exits (J, N, classes): their sum is Z."""
        bias = self.classifier.bias.detach()[:, None] / len(self.features)
        blocks = {k: self.classifier.blocks[str(k)].detach() for k in self.features}
        return {k: f @ blocks[k].transpose(1, 2) + bias for k, f in self.features.items()}


@dataclass(frozen=True)
class Point:
    """The operating point of a set of policies on some samples."""

    accuracy: float  # of the aggregated logits, in [0, 1]
    loss: float  # accuracy lost against all samples at the last exits, in [-1, 1]
    loss_error: float  # standard error of that, paired by sample
    cost: float  # mean over samples of the sum over devices
    costs: dict[int, float]  # device -> mean over samples
    slowest_mean: float  # a sample's wait for the last device, mean over samples and times
    slowest_p99: float  # 99th percentile of the same
    histogram: dict[int, tuple[int, ...]]  # device -> number of samples that stop at each exit


def exits_of(policies: Policies, answers: Answers, ids: Sequence[int] = ()) -> dict[int, Tensor]:
    """Return student -> the exit (from 0) of every sample, int64 (N,); `ids`: their numbers, by default 0..N-1."""
    given = ids or range(len(answers.labels))
    return {k: answers.exits(policies[k], k, given) for k in answers.features}


def operate(policies: Policies, answers: Answers, ids: Sequence[int] = ()) -> Point:
    """Return the operating point of the policies; `ids` as in `exits_of`."""
    return _point(answers, answers.votes(), exits_of(policies, answers, ids))


def _point(answers: Answers, votes: Mapping[int, Tensor], exits: Mapping[int, Tensor]) -> Point:
    rows = torch.arange(len(answers.labels))
    logits = torch.stack([votes[k][exits[k], rows] for k in votes]).sum(0)
    spent = {k: torch.tensor(answers.costs[k], dtype=torch.float64)[exits[k]] for k in votes}
    slowest_mean, slowest_p99 = _slowest(answers, exits)
    right = logits.argmax(1) == answers.labels
    lost = answers.right_at_last.double() - right.double()
    return Point(
        accuracy=right.double().mean().item(),
        loss=lost.mean().item(),
        loss_error=lost.std(correction=0).item() / len(lost) ** 0.5,
        cost=torch.stack(list(spent.values())).sum(0).mean().item(),
        costs={k: cost.mean().item() for k, cost in spent.items()},
        slowest_mean=slowest_mean,
        slowest_p99=slowest_p99,
        histogram={k: tuple(exits[k].bincount(minlength=len(votes[k])).tolist()) for k in votes},
    )


def _slowest(answers: Answers, exits: Mapping[int, Tensor]) -> tuple[float, float]:
    """Return mean and 99th percentile, over samples and times, of the wait for the last device.

    Samples that leave all devices at the same exits wait equally long, so each such group is computed once.
    """
    num_exits = len(next(iter(answers.features.values())))
    # a sample's exits as the digits of one number: a search for equal rows takes five times as long
    numbers = num_exits ** np.arange(len(exits)) @ np.stack([own.numpy() for own in exits.values()])
    _, first, samples = np.unique(numbers, return_index=True, return_counts=True)
    waits = [
        answers.seconds.get(k, torch.tensor(answers.costs[k], dtype=torch.float64)[:, None])[own[first]]
        for k, own in exits.items()
    ]
    slowest = torch.stack(waits).amax(0)
    weights = torch.from_numpy(samples)[:, None].expand_as(slowest).double()
    ordered, places = slowest.flatten().sort()
    passed = weights.flatten()[places].cumsum(0) / weights.sum()
    p99 = ordered[(passed < 0.99 - 1e-9).sum()]
    return float((slowest * weights).sum() / weights.sum()), float(p99)


def with_gates(answers: Answers) -> Answers:
    """Return the answers with a gate per student, fitted on them; raises `UserError` when they are too few."""
    check_samples(len(answers.labels))
    gates = dict[int, FittedGate]()
    for k, features in answers.features.items():
        classify, before = answers.classify(k), (features[0], *features[:-1])
        x = [gate_numbers(j, own, features[0], before[j], classify) for j, own in enumerate(features)]
        gates[k] = fit_gate(torch.from_numpy(np.stack(x)), answers.right_at_exits)
    return replace(answers, gates=gates)


def fit(rule: ScorePolicy, scores: Tensor, fractions: Tensor) -> ScorePolicy:
    """Return the policy by which the given fractions (J,) of samples with scores (J, N) leave at each exit.

    Raises `ValueError` when samples should leave at an exit without a meaningful score, see `ScorePolicy.first`.
    """
    if fractions[:-1][: rule.first].any():
        raise ValueError(f"no sample can leave before exit {rule.first} (from 0) by {rule.name}")
    return replace(rule, thresholds=fit_scores(scores, fractions, strict=True))


def sweep_fractions(num_exits: int, p: float, first: int) -> Tensor:
    """Return `budget_fractions` (J,) over the exits from `first` (from 0) on; no sample leaves before."""
    silent = min(first, num_exits - 1)
    return torch.cat([torch.zeros(silent, dtype=torch.float64), budget_fractions(num_exits - silent, p)])


def sweep(num_exits: int, first: int) -> list[Tensor]:
    """Return the fractions (J,) of all candidates: for every first exit from `first` on, MSDNet's sweep, and all there.

    With `first` alone, saving more always sends more samples out at the first exits, which are the least accurate.
    """
    shares: list[Tensor] = []
    for begin in range(first, num_exits - 1):
        shares += [sweep_fractions(num_exits, p, begin) for p in reversed(BUDGET_SWEEP)]
        shares.append(torch.eye(num_exits, dtype=torch.float64)[begin])
    return shares


def cheapest(answers: Answers, max_accuracy_loss: float, kind: type[ScorePolicy], errors: float = 1.0) -> Policies:
    """Return the cheapest policies that lose at most `max_accuracy_loss` against all samples at the last exit.

    The loss counts with so many standard errors on top, so that it holds for other samples more often than not. Of
    equally cheap policies, the most accurate; 0.01 is one percentage point.
    """
    most = max_accuracy_loss + 1e-9
    return _Search(answers, kind).best(
        lambda point: (max(0.0, point.loss + errors * point.loss_error - most), point.cost, -point.accuracy)
    )


def within(answers: Answers, target: float, kind: type[ScorePolicy], of: Measure = "cost") -> Policies:
    """Return the most accurate policies whose measure `of` is at most `target`; if none fits, the closest ones.

    "cost" bounds the mean cost of all devices together; "slowest_mean" and "slowest_p99" bound the latency, which the
    last device determines.
    """
    search = _Search(answers, kind)
    return search.best(lambda point: (max(0.0, getattr(point, of) - target), -point.accuracy, point.cost))


def ladder(answers: Answers, kind: type[ScorePolicy], rungs: int = 12) -> list[Policies]:
    """Return policies from "all samples at the last exit" to the cheapest: at most `rungs`, about equally far apart.

    From rung to rung the sum of the devices' mean costs falls, and no device's rises.
    """
    search = _Search(answers, kind)
    chain = [(search.uniform(0), search.point(search.uniform(0)))]
    for choice, point in search.efficient():
        last = chain[-1][1]
        if point.cost < last.cost and all(cost <= last.costs[k] for k, cost in point.costs.items()):
            chain.append((choice, point))
    dear, cheap = chain[0][1].cost, chain[-1][1].cost
    targets = [dear + (cheap - dear) * step / max(1, rungs - 1) for step in range(rungs)]
    # A dict keeps the order and drops duplicates.
    nearest = {min(range(len(chain)), key=lambda at: abs(chain[at][1].cost - target)): None for target in targets}
    return [search.policies(chain[at][0]) for at in nearest]


class _Search:
    """A search over the candidates of all students: the last exit, then the sweep."""

    def __init__(self, answers: Answers, kind: type[ScorePolicy]) -> None:
        self.answers, self.votes = answers, answers.votes()
        self.candidates: dict[int, list[ExitPolicy]] = {}
        self.exits: dict[int, list[Tensor]] = {}
        for k, features in answers.features.items():
            last, rule = LastExit(len(features)), answers.rule(kind, k)
            scores = answers.scores(rule, k)
            fitted = [fit(rule, scores, share) for share in sweep(len(features), kind.first)]
            self.candidates[k] = [last, *fitted]
            self.exits[k] = [last.exits(features), *(policy.exits_by(scores) for policy in fitted)]

    def uniform(self, index: int) -> dict[int, int]:
        """Return the choice of the same candidate for every student."""
        return dict.fromkeys(self.candidates, index)

    def policies(self, choice: Mapping[int, int]) -> Policies:
        """Return the chosen policies."""
        return {k: self.candidates[k][index] for k, index in choice.items()}

    def point(self, choice: Mapping[int, int]) -> Point:
        """Return the operating point of a choice."""
        return _point(self.answers, self.votes, {k: self.exits[k][index] for k, index in choice.items()})

    def uniform_choices(self) -> list[dict[int, int]]:
        """Return every choice of the same candidate for every student."""
        return [self.uniform(index) for index in range(min(map(len, self.candidates.values())))]

    def efficient(self) -> list[tuple[dict[int, int], Point]]:
        """Return the uniform choices for which no cheaper one is as accurate, from dear to cheap."""
        found = [(choice, self.point(choice)) for choice in self.uniform_choices()]
        best, efficient = -1.0, []
        for choice, point in sorted(found, key=lambda one: (one[1].cost, -one[1].accuracy)):
            if point.accuracy > best:
                best = point.accuracy
                efficient.append((choice, point))
        return efficient[::-1]

    def best(self, key: Callable[[Point], tuple[float, ...]]) -> Policies:
        """Return the policies with the least key: the best uniform choice, then improved student by student.

        Devices differ, so students may exit differently; trying all combinations would take too long.
        """
        choices = self.uniform_choices()
        least, best = min((key(self.point(choice)), at) for at, choice in enumerate(choices))
        choice, moved = choices[best], True
        while moved:
            moved = False
            for k, candidates in self.candidates.items():
                for index in range(len(candidates)):
                    other = {**choice, k: index}
                    value = key(self.point(other))
                    if value < least:
                        least, choice, moved = value, other, True
        return self.policies(choice)

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.exits import BUDGET_SWEEP, exit_counts
from strategies.distree.exits.calibration import (
    Answers,
    cheapest,
    fit,
    ladder,
    operate,
    sweep,
    sweep_fractions,
    with_gates,
    within,
)
from strategies.distree.exits.classifier import ColumnBlocks, OwnHeads
from strategies.distree.exits.policies import (
    Entropy,
    FeatureDifference,
    Gate,
    LastExit,
    OwnHead,
    Random,
    ScorePolicy,
)

COSTS = (1.0, 2.0, 3.0, 4.0)


def graded(samples: int = 400, exits: int = 4, seed: int = 0, students: Sequence[int] = (1, 2)) -> Answers:
    """Return students with better features at deeper exits, and for samples whose features turned most."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    classifier = ColumnBlocks(dict.fromkeys(students, 4), exits, 3, seed=0)
    features: dict[int, Tensor] = {}
    truth = torch.cat([torch.nn.functional.one_hot(labels, 3).float(), torch.zeros(samples, 1)], dim=1)
    for k in students:
        ease = torch.rand(samples, 1, generator=generator)
        noise = torch.rand(exits, samples, 4, generator=generator) * torch.tensor([4, 4, 4, 0.0])
        signal = torch.stack([(ease + j / (exits - 1)).clamp_max(1) * truth * j for j in range(exits)])
        features[k] = noise + signal + torch.tensor([0, 0, 0, 1.0])
        classifier.blocks[str(k)].data = torch.eye(4)[:3].repeat(exits, 1, 1)
    classifier.bias.data.zero_()
    own = OwnHeads(dict.fromkeys(students, 4), exits, 3)
    for weights in own.weights.values():
        weights.data = 2 * torch.eye(4)[:3].repeat(exits, 1, 1)
    return Answers(features, labels, classifier, own, dict.fromkeys(students, COSTS[:exits]))


def waits(*seconds: float) -> Tensor:
    """Return seconds of each exit, timed once."""
    return torch.tensor(seconds, dtype=torch.float64)[:, None]


def fitted(kind: type[ScorePolicy], answers: Answers, fractions: Tensor, number: int = 1) -> ScorePolicy:
    rule = answers.rule(kind, number)
    return fit(rule, answers.scores(rule, number), fractions)


def last(answers: Answers) -> dict[int, LastExit]:
    return {k: LastExit(len(f)) for k, f in answers.features.items()}


@pytest.mark.parametrize("kind", [FeatureDifference, Entropy, OwnHead])
@pytest.mark.parametrize("p", [0.5, 0.9, 1.0, 1.3])
def test_fitted_thresholds_give_the_requested_fractions(kind: type[ScorePolicy], p: float) -> None:
    answers = graded()
    fractions = sweep_fractions(4, p, kind.first)
    policy = fitted(kind, answers, fractions)
    exits = policy.exits(answers.features[1], answers.classify(1))
    assert exits.bincount(minlength=4).tolist() == exit_counts(400, fractions)
    assert type(policy) is kind


def test_sweep_starts_at_the_first_meaningful_score() -> None:
    # p = 0.5: p^4 = 1/16
    torch.testing.assert_close(sweep_fractions(3, 0.5, 1), torch.tensor([0, 16, 1], dtype=torch.float64) / 17)
    torch.testing.assert_close(sweep_fractions(2, 0.5, 0), torch.tensor([16, 1], dtype=torch.float64) / 17)
    assert sweep_fractions(1, 0.5, 1).tolist() == [1.0]


def test_sweep_covers_every_first_exit() -> None:
    shares, each = sweep(4, 1), len(BUDGET_SWEEP) + 1
    assert len(shares) == 2 * each
    assert [tuple((share[:3] > 0).tolist()) for share in shares[::each]] == [(False, True, True), (False, False, True)]
    assert [share.tolist() for share in shares[each - 1 :: each]] == [[0, 1, 0, 0], [0, 0, 1, 0]]
    assert all(float(share.sum()) == pytest.approx(1) for share in shares)
    assert sweep(1, 1) == []


def test_cheapest_finds_the_only_useful_early_exit() -> None:
    """Exits 1 and 2 are random, exit 3 is right: samples that leave before it are wrong."""
    answers = graded()
    for k, features in answers.features.items():
        features[:2] = torch.rand(features[:2].shape, generator=torch.Generator().manual_seed(k))
        features[2] = features[3]
    point = operate(cheapest(answers, 0.0, FeatureDifference), answers)
    assert point.accuracy >= operate(last(answers), answers).accuracy
    assert point.cost == 6.0
    assert operate(ladder(answers, FeatureDifference)[1], answers).cost == 6.0


def test_fit_by_difference_refuses_the_first_exit() -> None:
    rule = FeatureDifference((math.inf,) * 3)
    with pytest.raises(ValueError, match="before exit 1"):
        fit(rule, torch.ones(4, 9).double(), torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert fit(FeatureDifference(()), torch.ones(1, 9).double(), torch.ones(1)) == FeatureDifference(())


def test_thresholds_by_hand() -> None:
    # cosines to (1, 0): sample 0 0.6, sample 1 0.8; the lower cosine leaves first
    features = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[3.0, 4.0], [4.0, 3.0]], [[0.0, 1.0], [0.0, 1.0]]])
    rule = FeatureDifference((math.inf,) * 2)
    policy = fit(rule, rule.scores(features), torch.tensor([0.0, 0.5, 0.5]))
    assert policy.thresholds[0] == math.inf
    assert policy.thresholds[1] == pytest.approx(1 / 0.6)
    assert policy.exits(features).tolist() == [1, 2]


def test_infinite_differences_get_a_finite_threshold() -> None:
    features = torch.tensor([[[1.0, 0.0]] * 2, [[0.0, 1.0], [1.0, 1.0]], [[1.0, 0.0]] * 2])
    rule = FeatureDifference((math.inf,) * 2)
    policy = fit(rule, rule.scores(features), torch.tensor([0.0, 0.5, 0.5]))
    assert math.isfinite(policy.thresholds[1])
    assert policy.exits(features).tolist() == [1, 2]


def test_operate_by_hand() -> None:
    classifier = ColumnBlocks({1: 1, 2: 1}, 2, 2, seed=0)
    classifier.blocks["1"].data = torch.tensor([[[1.0], [0.0]], [[2.0], [0.0]]])
    classifier.blocks["2"].data = torch.tensor([[[0.0], [1.0]], [[0.0], [3.0]]])
    classifier.bias.data.zero_()
    ones = torch.ones(2, 4, 1)
    seconds = {1: torch.tensor([[1.0], [10]]), 2: torch.tensor([[9.0], [11]])}
    answers = Answers(
        {1: ones, 2: ones},
        torch.tensor([0, 1, 1, 1]),
        classifier,
        OwnHeads({1: 1, 2: 1}, 2, 2),
        {1: [1, 10], 2: [2, 4]},
        seconds,
    )
    # student 1 at its last exit votes 2 for class 0; student 2 votes 3 for class 1 at the last exit, else 1
    chosen = Random((1.0, 1.0), seed=1)
    exits = chosen.exits(ones, ids=range(4))
    point = operate({1: LastExit(2), 2: chosen}, answers)
    deep = exits.tolist().count(1)
    assert 0 < deep < 4
    assert point.accuracy == ((exits == 1) == (answers.labels == 1)).double().mean().item()
    assert point.costs == {1: 10.0, 2: (deep * 4 + (4 - deep) * 2) / 4}
    assert point.cost == point.costs[1] + point.costs[2]
    # 10 against 9 or 11
    assert point.slowest_mean == (deep * 11 + (4 - deep) * 10) / 4
    assert point.slowest_p99 == 11.0
    assert point.histogram == {1: (0, 4), 2: (4 - deep, deep)}
    assert operate({1: LastExit(2), 2: chosen}, answers, ids=[0, 0, 0, 0]).histogram[2] in ((4, 0), (0, 4))


def test_votes_add_up_to_the_logits() -> None:
    generator = torch.Generator().manual_seed(3)
    features = {k: torch.rand(4, 50, size, generator=generator) for k, size in ((1, 5), (2, 7), (3, 2))}
    classifier = ColumnBlocks({1: 5, 2: 7, 3: 2}, 4, 6, seed=1)
    answers = Answers(features, torch.zeros(50), classifier, OwnHeads({}, 4, 6), dict.fromkeys(features, COSTS))
    exits = {k: torch.randint(4, (50,), generator=generator) for k in features}
    rows = torch.arange(50)
    votes = answers.votes()
    torch.testing.assert_close(
        torch.stack([votes[k][exits[k], rows] for k in votes]).sum(0),
        classifier.combine({k: f[exits[k], rows] for k, f in features.items()}, exits).detach(),
    )


@pytest.mark.parametrize("kind", [FeatureDifference, Entropy, OwnHead])
@pytest.mark.parametrize("loss", [0.0, 0.02, 0.1])
def test_cheapest_keeps_to_the_loss_and_saves_cost(kind: type[ScorePolicy], loss: float) -> None:
    """The loss with its standard error on top."""
    answers = graded()
    point = operate(cheapest(answers, loss, kind), answers)
    assert point.loss + point.loss_error <= loss + 1e-9
    assert point.loss == pytest.approx(operate(last(answers), answers).accuracy - point.accuracy)
    assert point.cost < 8.0


def test_loss_and_its_error_by_hand() -> None:
    """Of 8 samples 3 are right at the last exit alone, 1 at the first alone: the loss is 2/8."""
    votes = torch.tensor([[1.0, 0, 0, 0, 1, 1, 0, 1], [0.0, 1, 1, 1, 1, 1, 0, 1]])
    classifier = ColumnBlocks({1: 1}, 2, 2, seed=0)
    classifier.blocks["1"].data = torch.tensor([[[0.0], [1.0]]] * 2)
    classifier.bias.data = torch.tensor([[0.5, 0.0]] * 2)
    answers = Answers({1: votes[:, :, None]}, torch.ones(8), classifier, OwnHeads({1: 1}, 2, 2), {1: (1.0, 2.0)})
    point = operate({1: Random((1.0, 0.0))}, answers)
    assert (point.accuracy, point.loss) == (4 / 8, 2 / 8)
    # losses of 1, 1, 1, -1 and four times 0: variance 4/8 - (2/8)^2
    assert point.loss_error == pytest.approx(math.sqrt((4 / 8 - 1 / 16) / 8))
    full = operate({1: LastExit(2)}, answers)
    assert (full.loss, full.loss_error) == (0.0, 0.0)


def test_cheapest_beats_every_uniform_candidate() -> None:
    answers = graded()
    chosen = operate(cheapest(answers, 0.02, FeatureDifference), answers)
    for p in BUDGET_SWEEP:
        share = sweep_fractions(4, p, 1)
        point = operate({k: fitted(FeatureDifference, answers, share, k) for k in (1, 2)}, answers)
        assert point.loss + point.loss_error > 0.02 or point.cost >= chosen.cost


def test_more_loss_is_cheaper() -> None:
    answers = graded()
    costs = [operate(cheapest(answers, loss, FeatureDifference), answers).cost for loss in (0.0, 0.02, 0.3)]
    assert costs[0] > costs[1] > costs[2]


def test_cheapest_is_the_last_exit_if_others_are_wrong() -> None:
    answers = graded(students=(1,))
    answers.classifier.blocks["1"].data[:-1] *= -1
    assert cheapest(answers, 0.0, FeatureDifference) == last(answers)


def test_within_keeps_the_mean_cost() -> None:
    answers = graded()
    targets = (4.5, 5.5, 6.5, 8.0)
    points = [operate(within(answers, target, FeatureDifference), answers) for target in targets]
    assert all(point.cost <= target for point, target in zip(points, targets, strict=True))
    assert all(a.accuracy <= b.accuracy for a, b in pairwise(points))
    assert points[0].accuracy < points[-1].accuracy
    assert points[-1].accuracy >= operate(last(answers), answers).accuracy


def test_within_comes_closest_to_an_impossible_target() -> None:
    answers = graded()
    point = operate(within(answers, 0.5, FeatureDifference), answers)
    assert point.cost == pytest.approx(operate(ladder(answers, FeatureDifference)[-1], answers).cost)


def test_latency_target_keeps_the_fast_device_at_its_last_exit() -> None:
    answers = replace(graded(), seconds={1: waits(1.5, 2.5, 3.5, 4.5), 2: waits(4.5, 8.5, 12.5, 16.5)})
    policies = within(answers, 12.0, FeatureDifference, "slowest_mean")
    point = operate(policies, answers)
    assert point.slowest_mean <= 12.0
    assert point.histogram[2][3] < 400
    # the quick one is done after 4.5, before the slow one leaves its second exit
    alone = operate({1: LastExit(4), 2: policies[2]}, answers)
    assert alone.slowest_mean == point.slowest_mean
    assert point.accuracy >= alone.accuracy
    assert operate(within(answers, 12.5, FeatureDifference, "slowest_p99"), answers).slowest_p99 <= 12.5
    # no sample can stay: 16.5 is above the target, and one sample in a hundred is already too many
    assert operate(within(answers, 12.5, FeatureDifference, "slowest_p99"), answers).histogram[2][3] <= 4


def test_latency_without_seconds_is_in_costs() -> None:
    answers = replace(graded(), costs={1: COSTS, 2: (4.0, 8.0, 12.0, 16.0)})
    point = operate(last(answers), answers)
    assert (point.slowest_mean, point.slowest_p99) == (16.0, 16.0)


@pytest.mark.parametrize(("hiccups", "p99"), [(1, 5.0), (2, 105.0)])
def test_p99_includes_jitter(hiccups: int, p99: float) -> None:
    """One slow time in a hundred is allowed, two are not; shared hiccups count once."""
    steady, uneven = torch.full((4, 100), 4.0), torch.full((4, 100), 5.0)
    uneven[:, :hiccups] += 100
    answers = graded()
    point = operate(last(answers), replace(answers, seconds={1: steady, 2: uneven}))
    assert point.slowest_mean == pytest.approx(5 + hiccups)
    assert point.slowest_p99 == p99
    together = operate(last(answers), replace(answers, seconds={1: uneven, 2: uneven}))
    assert together.slowest_p99 == p99


def test_p99_target_holds_with_jitter() -> None:
    """Samples and times count alike: if 2 in 100 times are slow, hardly any sample may stay."""
    seconds = torch.tensor([1.0, 2.0, 3.0, 4.0])[:, None].repeat(1, 100)
    seconds[2:, :2] += 100
    answers = replace(graded(), seconds={1: seconds, 2: seconds})
    point = operate(within(answers, 5.0, FeatureDifference, "slowest_p99"), answers)
    assert point.slowest_p99 <= 5.0
    stayed = max(sum(point.histogram[k][2:]) for k in (1, 2))
    assert 0 < stayed <= 200


def test_ladder_falls_from_the_last_exit() -> None:
    answers = graded()
    rungs = ladder(answers, FeatureDifference)
    points = [operate(rung, answers) for rung in rungs]
    assert rungs[0] == last(answers)
    assert 8 <= len(rungs) <= 12
    assert all(a.cost > b.cost for a, b in pairwise(points))
    assert all(a.costs[k] >= b.costs[k] for a, b in pairwise(points) for k in (1, 2))
    assert points[-1].cost < 4.3
    # no step takes much more than its share of the way
    assert max(a.cost - b.cost for a, b in pairwise(points)) < 3 * (8.0 - points[-1].cost) / 11
    assert ladder(answers, FeatureDifference, rungs=3)[::2] == [rungs[0], rungs[-1]]


def test_no_rung_makes_a_device_dearer() -> None:
    odd = replace(graded(), costs={1: (1.0, 20.0, 30.0, 40.0), 2: (1.0, 6.0, 5.0, 4.0)})
    assert ladder(odd, FeatureDifference) == [last(odd)]


def test_ladder_of_single_exit_students_has_one_rung() -> None:
    classifier = ColumnBlocks({1: 2}, 1, 2, seed=0)
    answers = Answers({1: torch.ones(1, 5, 2)}, torch.zeros(5), classifier, OwnHeads({1: 2}, 1, 2), {1: (3.0,)})
    assert ladder(answers, FeatureDifference) == [{1: LastExit(1)}]


@pytest.fixture(scope="module")
def gated() -> Answers:
    return with_gates(graded())


def test_gate_keeps_targets_by_scores_of_gates_that_have_not_seen_the_sample(gated: Answers) -> None:
    point = operate(cheapest(gated, 0.02, Gate), gated)
    assert point.loss + point.loss_error <= 0.02 + 1e-9
    assert point.cost < 8.0
    chosen = within(gated, 5.0, Gate)
    assert {type(policy) for policy in chosen.values()} == {Gate}
    assert operate(chosen, gated).cost <= 5.0
    for k, policy in chosen.items():
        assert isinstance(policy, Gate)
        assert policy.weights == gated.gates[k].weights
        thresholds = torch.tensor(policy.thresholds, dtype=torch.float64)
        leaves = (gated.gates[k].scores[:3] > thresholds[:, None]).any(0)
        assert sum(operate(chosen, gated).histogram[k][:3]) == int(leaves.sum())
    # on other samples the gate of all samples decides
    other = graded(seed=5)
    assert operate(chosen, other).histogram == {
        k: tuple(policy.exits(other.features[k], other.classify(k)).bincount(minlength=4).tolist())
        for k, policy in chosen.items()
    }
    assert operate(chosen, gated).histogram != operate(chosen, replace(gated, gates={})).histogram


def test_gate_tells_right_answers_of_other_samples_apart(gated: Answers) -> None:
    other = graded(seed=5)
    for j in (1, 2):
        right, scores = other.right_at_exits[j], other.scores(gated.rule(Gate, 1), 1)[j]
        assert scores[right].mean() > scores[~right].mean() + 0.3


def test_right_at_exits_is_the_common_answer(gated: Answers) -> None:
    assert gated.right_at_exits.shape == (4, 400)
    for j in range(4):
        logits = gated.classifier({k: f[j] for k, f in gated.features.items()}, j)
        assert torch.equal(gated.right_at_exits[j], logits.argmax(1) == gated.labels)
    assert torch.equal(gated.right_at_last, gated.right_at_exits[3])


def test_gates_need_enough_samples() -> None:
    with pytest.raises(UserError, match="100 or more validation images, there are 60"):
        with_gates(graded(samples=60))


def test_same_samples_give_the_same_policies() -> None:
    assert cheapest(graded(), 0.01, FeatureDifference) == cheapest(graded(), 0.01, FeatureDifference)


def test_answers_without_samples_are_refused() -> None:
    with pytest.raises(UserError, match="no validation samples"):
        Answers({}, torch.zeros(0), ColumnBlocks({1: 1}, 1, 2, seed=0), OwnHeads({1: 1}, 1, 2), {})

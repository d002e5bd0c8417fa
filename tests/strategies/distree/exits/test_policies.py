import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from common.errors import UserError
from common.networks import NetworkSpec, build
from common.networks.base import Leaves
from strategies.distree.exits.policies import (
    PUBLISHED,
    Entropy,
    ExitPolicy,
    FeatureDifference,
    Gate,
    LastExit,
    OwnHead,
    Random,
    ScorePolicy,
    diff_cos,
    oracle_exits,
    policy_from_json,
    remedy,
)
from strategies.distree.model.students import Student

NEVER = math.inf


def random_features(exits: int = 7, samples: int = 200, size: int = 13, seed: int = 0) -> Tensor:
    """Return features like a student's: never negative, some zero vectors, neighbouring exits similar."""
    noise = torch.randn(exits, samples, size, generator=torch.Generator().manual_seed(seed))
    features = noise.cumsum(0).relu()
    features[3, :5] = 0
    features[0, 3:8] = 0
    return features


def classify(exit_index: int, features: Tensor, own: bool = False) -> Tensor:
    """Return logits computed elementwise, so that a sample's logits do not depend on its batch."""
    return features[:, 4:8] if own else features[:, :4] * (exit_index + 1)


LENGTH = (0.0,) * 10 + (1.0,) + (0.0,) * 5  # weights of a gate that asks for the features' length alone
POLICIES: list[ExitPolicy] = [
    FeatureDifference(PUBLISHED),
    FeatureDifference((1.0, 1.3, 1.4, 1.5, 1.7, 2.0)),
    Random((0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0), seed=3),
    LastExit(7),
    Entropy((0.5, 0.6, NEVER, 0.7, 0.6, 0.5)),
    OwnHead((0.3, 0.6, NEVER, 0.7, 0.6, 0.5)),
    Gate((4.0, 5.0, NEVER, 6.0, 7.0, 8.0), (LENGTH,) * 7),
]


def stepwise(leaves: Leaves, features: Tensor) -> Tensor:
    """Return the exit of every sample, asking as `Student.infer` does."""
    rows, exits = torch.arange(features.shape[1]), torch.full((features.shape[1],), len(features) - 1)
    for index, at_exit in enumerate(features[:-1]):
        gone = leaves(index, at_exit[rows])
        assert gone.dtype == torch.bool
        exits[rows[gone]] = index
        rows = rows[~gone]
        if not len(rows):
            break
    return exits


def batches(features: Tensor, size: int) -> Iterator[tuple[Tensor, range]]:
    for start in range(0, features.shape[1], size):
        part = features[:, start : start + size]
        yield part, range(start, start + part.shape[1])


def test_difference_is_one_over_the_cosine() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [2.0, 2.0], [1.0, 0.0]])
    later = torch.tensor([[0.98, math.sqrt(1 - 0.98**2)], [3.0, 4.0], [5.0, 5.0], [0.0, 1.0]])
    found = diff_cos(later, first).tolist()
    assert round(found[0], 4) == 1.0204
    assert found[1] == pytest.approx(5 / 3, abs=1e-7)
    assert found[2] == pytest.approx(1.0, abs=1e-12)
    assert found[3] == math.inf


def test_difference_is_never_below_one() -> None:
    features = random_features(4, 1000)[1]
    assert diff_cos(features, features * 3).min() >= 1.0


def test_zero_vector_has_difference_one() -> None:
    some, zero = torch.ones(1, 3), torch.zeros(1, 3)
    for pair in ((some, zero), (zero, some), (zero, zero)):
        assert diff_cos(*pair).tolist() == [1.0]


def test_no_sample_leaves_at_the_first_published_threshold() -> None:
    features = random_features()
    assert not FeatureDifference(PUBLISHED).start()(0, features[0]).any()
    exits = FeatureDifference((1.0,) * 6).exits(features)
    assert exits.min() == 1
    # two samples whose features never turn: d = 1 all along, which is not more than 1
    still = torch.tensor([[3.0, 4.0], [1.0, 0.0]]).repeat(7, 1, 1)
    assert FeatureDifference((1.0,) * 6).exits(still).tolist() == [6, 6]


def test_difference_by_hand() -> None:
    # cosines to the first exit 0.8 and 0.6: d = 1.25 and 1.667
    features = torch.tensor([[[1.0, 0.0]], [[0.8, 0.6]], [[0.6, 0.8]], [[0.0, 1.0]]])
    assert FeatureDifference((1.0, 1.2, 9.0)).exits(features).tolist() == [1]
    assert FeatureDifference((1.0, 1.3, 1.6)).exits(features).tolist() == [2]
    assert FeatureDifference((1.0, 1.3, 1.7)).exits(features).tolist() == [3]


def test_entropy_by_hand() -> None:
    policy = Entropy((0.9,))
    logits = torch.tensor([[0.0, 0.0], [80.0, 0.0]])
    assert policy.start(lambda exit_index, features, own: logits)(0, torch.ones(2, 3)).tolist() == [False, True]
    scores = policy.scores(torch.ones(2, 2, 3), lambda exit_index, features, own: logits)
    assert scores.dtype == torch.float64
    assert scores.tolist() == [[0.0, 1.0]] * 2


def test_own_head_asks_the_own_head() -> None:
    sure, unsure = torch.tensor([[80.0, 0.0]]), torch.zeros(1, 2)
    asked = lambda exit_index, features, own: sure if own else unsure  # noqa: E731
    assert OwnHead((0.9,)).exits(torch.ones(2, 1, 3), asked).tolist() == [0]
    assert Entropy((0.9,)).exits(torch.ones(2, 1, 3), asked).tolist() == [1]


@pytest.mark.parametrize("policy", [Entropy((0.5,)), OwnHead((0.5,)), Gate((0.5,), (LENGTH,) * 2)])
def test_heads_need_a_classifier(policy: ScorePolicy) -> None:
    with pytest.raises(UserError, match=f"'{policy.name}' needs a classifier"):
        policy.start()
    with pytest.raises(UserError, match="classifier"):
        policy.exits(torch.ones(2, 1, 3))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("size", [1, 3, 64, 200])
def test_exits_equal_step_by_step_decisions(policy: ExitPolicy, size: int) -> None:
    features = random_features()
    offline = policy.exits(features, classify, range(200))
    assert offline.dtype == torch.int64
    online = [stepwise(policy.start(classify, ids), part) for part, ids in batches(features, size)]
    torch.testing.assert_close(torch.cat(online), offline, rtol=0, atol=0)


def test_samples_of_one_batch_leave_at_different_exits() -> None:
    features = random_features()
    spread = {policy.name: len(set(policy.exits(features, classify, range(200)).tolist())) for policy in POLICIES}
    assert spread == {"difference": 6, "random": 6, "last": 1, "entropy": 6, "own-head": 6, "gate": 6}


@pytest.fixture(scope="module")
def student() -> Student:
    return Student.of(build(NetworkSpec(name="resnet_slim", num_classes=12, input_shape=(1, 8, 8)), seed=0)).eval()


@pytest.mark.parametrize("kind", [FeatureDifference, Entropy, OwnHead, Random])
def test_student_stops_at_the_exits_of_the_policy(student: Student, kind: type) -> None:
    x = torch.randn(24, *student.input_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features = torch.stack(student(x))
    policy: ExitPolicy
    if kind is Random:
        policy = Random((1.0,) * len(features))
    else:
        scores = kind((0.0,) * (len(features) - 1)).scores(features, classify)[:-1]
        # halfway between two samples' scores, where rounding cannot matter
        ordered = scores.sort(1).values
        policy = kind((NEVER, *((ordered[:, 11] + ordered[:, 12]) / 2).tolist()[1:]))
    inference = student.infer(x, policy.start(classify, range(24)))
    exits = policy.exits(features, classify, range(24))
    assert len(exits.unique()) > 2
    assert inference.exits.tolist() == exits.tolist()
    torch.testing.assert_close(inference.logits, features[exits, torch.arange(24)], rtol=1e-4, atol=1e-5)


def test_random_exit_depends_only_on_seed_and_number() -> None:
    features = torch.ones(3, 4, 2)
    policy = Random((1.0, 1.0, 2.0), seed=5)
    together = policy.exits(features, ids=(10, 11, 12, 13))
    assert policy.exits(features, ids=(13, 12, 11, 10)).tolist() == together.flip(0).tolist()
    many = torch.ones(3, 4000, 2)
    shares = policy.exits(many, ids=range(4000)).bincount(minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.25, 0.25, 0.5]), rtol=0, atol=0.03)
    other = Random((1.0, 1.0, 2.0), seed=6)
    assert (other.exits(many, ids=range(4000)) != policy.exits(many, ids=range(4000))).any()


def test_random_uses_only_exits_with_a_share() -> None:
    exits = Random((0.0, 1.0, 0.0, 1.0, 0.0)).exits(torch.ones(5, 500, 1), ids=range(500))
    assert set(exits.tolist()) == {1, 3}


def test_random_needs_sample_numbers() -> None:
    policy = Random((1.0, 1.0))
    with pytest.raises(UserError, match="number of every sample"):
        policy.exits(torch.ones(2, 3, 1))
    with pytest.raises(UserError, match="number of every sample"):
        policy.start(ids=(1,))(0, torch.ones(3, 1))


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policy_survives_json(policy: ExitPolicy) -> None:
    assert policy_from_json(policy.to_json()) == policy
    assert hash(policy_from_json(policy.to_json())) == hash(policy)
    assert policy.num_exits == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "[" * 4000,
        '{"policy": "difference"}',
        '{"policy": "difference", "thresholds": 3}',
        '{"policy": "difference", "thresholds": ["x"]}',
        '{"policy": "difference", "thresholds": [], "more": 1}',
        '{"policy": "wish", "thresholds": []}',
        '{"policy": ["last"], "num_exits": 2}',
        '{"policy": "last", "num_exits": 2.5}',
        '{"policy": "random", "shares": [1], "seed": true}',
        '{"thresholds": [1]}',
        '{"policy": "own-head", "thresholds": [NaN]}',
        '{"policy": "gate", "thresholds": [1]}',
        '{"policy": "gate", "thresholds": [], "weights": 3}',
        '{"policy": "gate", "thresholds": [], "weights": [[1, "x"]]}',
        '{"policy": "gate", "thresholds": [], "weights": [[1, 2]]}',
        '{"policy": "neighbour", "thresholds": [1]}',
        '{"policy": "last", "num_exits": 0}',
        '{"policy": "random", "shares": [0, 0], "seed": 1}',
    ],
)
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="damaged"):
        policy_from_json(text)


def test_long_json_is_refused() -> None:
    with pytest.raises(UserError, match="16384"):
        policy_from_json(FeatureDifference((1.25,) * 4000).to_json())


def test_only_rules_can_be_fitted() -> None:
    assert "-c distree.exit-rule=gate" in remedy("gate")
    assert remedy("quick") == ""


def test_impossible_policies_are_refused() -> None:
    for thresholds in ((math.nan,), (1.0, -math.inf)):
        with pytest.raises(UserError, match="not a number"):
            FeatureDifference(thresholds)
    for shares in ((), (0.0, 0.0), (1.0, -0.5), (math.nan,), (math.inf,)):
        with pytest.raises(UserError, match="not all 0"):
            Random(shares)
    with pytest.raises(UserError, match="1 or more"):
        LastExit(0)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_policy_refuses_another_number_of_exits(policy: ExitPolicy) -> None:
    with pytest.raises(UserError, match="7 exits, the student has 4"):
        policy.exits(random_features(4, 9), classify, range(9))


def test_single_exit_takes_all() -> None:
    assert FeatureDifference(()).exits(random_features(4, 5)[:1]).tolist() == [0] * 5


def test_oracle_takes_the_first_right_exit_else_the_last() -> None:
    classes = torch.tensor([[0, 1, 1, 1], [0, 0, 1, 1], [0, 0, 0, 1]])
    logits = torch.nn.functional.one_hot(classes, 2).float()
    assert oracle_exits(logits, torch.zeros(4, dtype=torch.int64)).tolist() == [0, 1, 2, 2]

"""The rules give the same for numpy's arrays as for torch's tensors."""

import numpy as np
import pytest
import torch

from common.arrays import two_largest
from common.data.images import Normalizer
from common.data.normalising import ArrayNormalizer
from common.exits import MEASURES, ThresholdPolicy, confidence, entropy_gate
from common.seeding import generator
from strategies.distree.exits.policies import (
    Entropy,
    ExitPolicy,
    FeatureDifference,
    Gate,
    LastExit,
    OwnHead,
    Random,
)

LOGITS = 4 * torch.randn(3, 60, 7, generator=generator("logits"))
FEATURES = torch.randn(4, 60, 9, generator=generator("features")).relu()
POLICIES = [
    LastExit(4),
    Random((1.0, 1.0, 0.0, 2.0), seed=3),
    FeatureDifference((1.0, 1.3, 1.5)),
    Entropy((0.4, 0.5, 0.3)),
    OwnHead((0.4, 0.5, float("inf"))),
    Gate((0.2, 0.4, 0.6), tuple(map(tuple, torch.randn(4, 16, generator=generator("gate")).div(3).tolist()))),
]


@pytest.mark.parametrize("measure", MEASURES)
def test_confidence_and_exits(measure: str) -> None:
    one, other = confidence(LOGITS, measure), confidence(LOGITS.numpy(), measure)
    assert other.dtype == np.float32
    np.testing.assert_allclose(other, one.numpy(), atol=2e-6, rtol=1e-6)
    policy = ThresholdPolicy((float(one[0].median()), float(one[1].quantile(0.3))), measure)
    found = policy.exits(LOGITS.numpy())
    assert found.tolist() == policy.exits(LOGITS).tolist()
    assert set(found.tolist()) == {0, 1, 2}
    assert policy(2, LOGITS[2].numpy()).tolist() == [True] * 60


def test_a_gates_ends_are_exact_and_certain_logits_have_no_entropy() -> None:
    sure = np.array([[500.0, 0.0, 0.0], [1.0, 1.0, 1.0]], np.float32)
    assert confidence(sure, "entropy").tolist() == [1.0, 0.0]
    assert entropy_gate(0.0)(0, sure).tolist() == [False, False]
    assert entropy_gate(1.0)(0, sure).tolist() == [True, True]


def test_two_largest_come_with_the_largest_first() -> None:
    some = np.array([[3.0, 1.0, 2.0], [5.0, 5.0, -1.0]])
    assert two_largest(some).tolist() == two_largest(torch.from_numpy(some)).tolist() == [[3.0, 2.0], [5.0, 5.0]]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_students_policies(policy: ExitPolicy) -> None:
    FEATURES[2, 5] = FEATURES[0, 7] = 0.0  # no direction
    heads = torch.randn(2, 4, 7, 9, generator=generator("weights"))
    ids = range(60)
    one = policy.exits(FEATURES, lambda index, x, own=False: x @ heads[int(own), index].T, ids)
    classify = lambda index, x, own=False: x @ heads[int(own), index].numpy().T  # noqa: E731
    other = policy.exits(FEATURES.numpy(), classify, ids)
    assert isinstance(other, np.ndarray)
    assert other.tolist() == one.tolist()
    leaves, rows, left = policy.start(classify, ids), np.arange(60), np.full(60, 3)
    for index in range(3):  # as a device decides, exit by exit
        gone = leaves(index, FEATURES[index].numpy()[rows])
        left[rows[gone]] = index
        rows = rows[~gone]
    assert left.tolist() == one.tolist()


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,), (0.25,)), ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)), ((), ())]
)
def test_normalisers_have_the_same_bits(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    inputs = torch.arange(0, 256, dtype=torch.uint8).repeat(3).reshape(4, 3, 8, 8)
    one, other = Normalizer(mean, std)(inputs), ArrayNormalizer(mean, std)(inputs.numpy())
    assert other.dtype == one.numpy().dtype
    assert other.tobytes() == one.numpy().tobytes()

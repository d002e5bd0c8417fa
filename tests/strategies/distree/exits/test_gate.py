import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.gate import COUNT, Gate, gate_numbers
from strategies.distree.exits.policies import policy_from_json

NEVER = math.inf


def classify(exit_index: int, features: Any, own: bool = False) -> Any:
    """Return logits of two classes: an own head swaps the features, columns double them, and both grow by exit."""
    return (features[:, [1, 0]] if own else 2 * features) * (exit_index + 1)


def sure(lead: float) -> float:
    """Return 1 - H / log 2 of two logits."""
    p = 1 / (1 + math.exp(-lead))
    return 1 + (p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


def test_numbers_by_hand() -> None:
    """One sample with features (3, 4), after (1, 0) at the exit before and (0, 2) at the first."""
    features, first, before = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    likely = [1 / (1 + math.exp(-lead)) for lead in (3, 6)]
    (found,) = gate_numbers(2, features, first, before, classify).tolist()
    assert found == pytest.approx(
        [
            sure(3), likely[0], 2 * likely[0] - 1, 12.0,  # of the own head: logits 12 and 9
            sure(6), likely[1], 2 * likely[1] - 1, 24.0,  # of the columns: logits 18 and 24
            0.8, 0.6, 5.0, 0.0,  # cosines to (0, 1) and (1, 0), length, no zeros
            0.0, 0.0, sure(2),  # class 0, against 1 of the columns and 1 of the own head at exit 2, with logits 0 and 2
        ]
    )  # fmt: skip


def test_first_exit_is_compared_with_itself() -> None:
    first = torch.tensor([[0.0, 2.0]])
    (found,) = gate_numbers(0, first, first, first, classify).tolist()
    assert found[8:14] == [1.0, 1.0, 2.0, 0.5, 0.0, 1.0]
    assert found[14] == found[0] == pytest.approx(sure(2))


def weighing(**weights: float) -> tuple[float, ...]:
    """Return a gate's row with these weights by number, such as n10, and the rest 0."""
    row = [0.0] * (COUNT + 1)
    for name, weight in weights.items():
        row[int(name[1:])] = weight
    return tuple(row)


def test_samples_leave_above_the_threshold() -> None:
    """The first exit weighs the length, the second the cosine to the first exit, with a bias."""
    features = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    features = torch.cat([features, features[:1]])
    weights = weighing(n10=2.0, n15=-1.0), weighing(n8=1.0, n15=0.5), weighing()
    gate = Gate((NEVER, NEVER), weights)
    found = gate.scores(features, classify)
    torch.testing.assert_close(
        found, torch.tensor([[9.0, 3, 1], [0.7 * 2**0.5 + 0.5, 0.5, 1.5], [0, 0, 0]], dtype=torch.float64)
    )
    assert Gate((3.5, 1.4), weights).exits(features, classify).tolist() == [0, 2, 1]
    assert Gate((3.5, NEVER), weights).exits(features, classify).tolist() == [0, 2, 2]


@pytest.mark.parametrize("silent", [(), (0,), (1,)], ids=str)
def test_device_decides_exit_by_exit_as_for_known_features(silent: tuple[int, ...]) -> None:
    """At silent exits no sample leaves, and no score is computed."""
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(4, 300, 6, generator=generator)
    rows = torch.randn(4, COUNT + 1, generator=generator).div(COUNT).tolist()
    heads = torch.randn(2, 4, 3, 6, generator=generator)

    def asked(exit_index: int, x: Tensor, own: bool = False) -> Tensor:
        return x @ heads[int(own), exit_index].T

    gate = Gate((NEVER,) * 3, tuple(map(tuple, rows)))
    middle = gate.scores(features, asked)[:3].quantile(0.6, dim=1).tolist()
    gate = replace(gate, thresholds=tuple(NEVER if j in silent else value for j, value in enumerate(middle)))
    leaves, rest, exits = gate.start(asked), torch.arange(300), torch.full((300,), 3)
    for index in range(3):
        gone = leaves(index, features[index, rest])
        exits[rest[gone]] = index
        rest = rest[~gone]
    assert exits.tolist() == gate.exits(features, asked).tolist()
    assert set(exits.tolist()) == {0, 1, 2, 3} - set(silent)


def test_numbers_of_arrays_are_those_of_tensors() -> None:
    features = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(1)).sub(0.3).relu()
    one = gate_numbers(1, features[1], features[0], features[0], classify)
    other = gate_numbers(1, *(features[j].numpy() for j in (1, 0, 0)), classify)
    np.testing.assert_allclose(other, one, atol=1e-6)
    # on a device whose tensors numpy cannot read, torch computes them
    tensors = gate_numbers(1, *(features[j].to("meta") for j in (1, 0, 0)), classify)
    assert (tensors.device.type, tensors.shape, tensors.dtype) == ("meta", (40, COUNT), torch.float64)


def test_zero_vector_has_cosine_0() -> None:
    some, zero = torch.ones(1, 2), torch.zeros(1, 2)
    assert gate_numbers(1, zero, some, some, classify)[0, 8:12].tolist() == [0.0, 0.0, 0.0, 1.0]


def test_gate_survives_json() -> None:
    gate = Gate((NEVER, 0.1 + 0.2), (weighing(n0=1 / 3), weighing(n15=-2.0), weighing()))
    assert policy_from_json(gate.to_json()) == gate
    assert hash(policy_from_json(gate.to_json())) == hash(gate)


def test_json_of_12_exits_is_short_enough() -> None:
    gate = Gate((0.1 + 0.2,) * 11, ((-math.pi / 1000,) * (COUNT + 1),) * 12)
    assert policy_from_json(gate.to_json()) == gate


@pytest.mark.parametrize(
    "weights",
    [(), (weighing(),), (weighing(), weighing()[1:]), (weighing(), weighing(n3=NEVER)), (weighing(n3=math.nan),) * 2],
)
def test_incomplete_weights_are_refused(weights: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(UserError, match="16 finite weights per exit"):
        Gate((0.5,), weights)

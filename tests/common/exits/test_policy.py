import json
import math

import pytest
import torch

from common.errors import UserError
from common.exits import ThresholdPolicy, confidence, entropy_gate, exit_predictions
from common.networks import NetworkSpec, build


def test_confidence_measures_match_results_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    torch.testing.assert_close(confidence(logits), torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(confidence(logits, "raw"), torch.tensor([math.log(3.0), 0.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    torch.testing.assert_close(confidence(logits, "entropy"), torch.tensor([1 - entropy, 0.0]))


def test_entropy_of_a_certain_sample_is_one_and_finite() -> None:
    assert confidence(torch.tensor([[200.0, 0.0, 0.0]]), "entropy").item() == 1.0


def test_unknown_measure_is_refused() -> None:
    with pytest.raises(UserError, match="margin"):
        confidence(torch.zeros(1, 2), "margin")
    with pytest.raises(UserError, match="margin"):
        ThresholdPolicy((0.5,), "margin")


def test_sample_leaves_at_its_threshold_or_the_last_exit() -> None:
    policy = ThresholdPolicy((0.75, math.inf), "raw")
    logits = torch.tensor([[0.74, 0.0], [0.75, 0.0], [0.0, 0.76]])
    assert policy(0, logits).tolist() == [False, True, True]
    assert policy(1, logits).tolist() == [False, False, False]
    assert policy(2, logits).tolist() == [True, True, True]


def test_exits_and_predictions_of_stored_logits() -> None:
    policy = ThresholdPolicy((0.5, 0.5), "raw")
    logits = torch.tensor(
        [
            [[0.9, 0.0], [0.1, 0.0], [0.1, 0.0]],
            [[0.0, 0.9], [0.0, 0.6], [0.1, 0.2]],
            [[0.0, 0.9], [0.9, 0.0], [0.3, 0.2]],
        ]
    )
    exits = policy.exits(logits)
    assert exits.tolist() == [0, 1, 2]
    assert exit_predictions(logits, exits).tolist() == [0, 1, 0]


def test_single_exit_takes_all_samples() -> None:
    assert ThresholdPolicy(()).exits(torch.randn(1, 4, 3)).tolist() == [0, 0, 0, 0]


def test_policy_for_another_number_of_exits_is_refused() -> None:
    with pytest.raises(UserError, match="3 exits"):
        ThresholdPolicy((0.5, 0.5)).exits(torch.zeros(2, 4, 3))


def test_json_round_trip_is_strict_and_exact() -> None:
    policy = ThresholdPolicy((0.1, math.inf, torch.tensor(0.7).item()), "entropy")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(policy.to_json(), parse_constant=refuse)
    assert ThresholdPolicy.from_json(policy.to_json()) == policy


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"thresholds": ["a"], "measure": "raw"}', '{"measure": 1}'])
def test_damaged_json_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        ThresholdPolicy.from_json(text)


def test_thresholds_must_be_numbers() -> None:
    for bad in (math.nan, -math.inf):
        with pytest.raises(UserError, match="not a number"):
            ThresholdPolicy((bad,))


def test_early_exit_inference_takes_the_same_exits() -> None:
    network = build(NetworkSpec(name="resnet_slim", num_classes=10, input_shape=(1, 8, 8)), seed=0).eval()
    x = torch.randn(24, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        logits = torch.stack(network(x))
    # Thresholds half-way between two samples: inference regroups the batch, which may move the last bits.
    middles = [confidence(exit_logits).sort().values[11:13].mean().item() for exit_logits in logits[:-1]]
    policy = ThresholdPolicy(tuple(middles))
    inference = network.infer(x, policy)
    assert torch.equal(inference.exits, policy.exits(logits))
    assert len(inference.exits.unique()) > 1


def test_entropy_gate_is_exact_at_0_and_1_and_inclusive_between() -> None:
    logits = torch.tensor([[0.0] * 7, [3.0] + [0.0] * 6, [300.0] + [0.0] * 6])  # uncertain, medium, certain
    entropy = 1 - confidence(logits, "entropy")
    assert 0.2 < entropy[1] < 0.8
    for tau, stays in (
        (0.0, [False, False, False]),
        (0.2, [False, False, True]),
        (float(entropy[1]), [False, True, True]),
        (0.999, [False, True, True]),
        (1.0, [True, True, True]),
    ):
        assert entropy_gate(tau)(0, logits).tolist() == stays, tau


def test_entropy_stays_in_its_range_despite_rounding() -> None:
    for classes in range(2, 200):
        assert 0.0 <= confidence(torch.zeros(classes), "entropy") <= 1.0


@pytest.mark.parametrize("tau", [-0.1, 1.1, math.nan])
def test_tau_out_of_range_is_refused(tau: float) -> None:
    with pytest.raises(UserError, match="from 0"):
        entropy_gate(tau)

"""Thresholds follow the confidences that int8 moves, and the classifier stays in fp32."""

import io
import math

import numpy as np
import onnx
import pytest

from common.exits.policy import ThresholdPolicy
from common.networks import NetworkSpec
from common.onnx import quantize
from common.onnx.export import make_graphs
from common.onnx.quantize import all_logits, in_int8, quantized, refitted
from common.storage.model_file import StoredModel
from tests.support.exported import samples, stored

SPEC = NetworkSpec("lenet", 5, (1, 12, 12), ensemble=0.2)


@pytest.fixture(scope="module")
def model() -> StoredModel:
    return stored(SPEC)


@pytest.fixture(scope="module")
def graphs(model: StoredModel) -> list[bytes]:
    return make_graphs(model.network, features=False)


def logits(exits: int, number: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(exits, number, 5)).astype(np.float32) * 3


@pytest.mark.parametrize("measure", ["softmax", "raw", "entropy"])
def test_as_many_samples_leave_at_each_exit(measure: str) -> None:
    before, noise = logits(4, 200, 1), logits(4, 200, 2)
    after = 0.7 * before + 0.2 * noise
    middle = float({"softmax": 0.9, "raw": 6.0, "entropy": 0.6}[measure])
    policy = ThresholdPolicy((middle, middle, middle / 2), measure)
    found = refitted(policy, before, after)
    counts = [np.bincount(each.exits(x), minlength=4).tolist() for each, x in ((policy, before), (found, after))]
    assert counts[0] == counts[1]
    assert np.bincount(policy.exits(after), minlength=4).tolist() != counts[0]
    assert found.measure == measure


def test_where_none_or_all_leave_the_threshold_stays() -> None:
    before = logits(3, 50, 1)
    for thresholds in ((math.inf, math.inf), (0.0, 0.5), (math.inf, 0.0)):
        policy = ThresholdPolicy(thresholds)
        assert refitted(policy, before, 0.5 * before) == policy
    assert (
        refitted(ThresholdPolicy((0.9, 0.8)), before, before).exits(before).tolist()
        == ThresholdPolicy((0.9, 0.8)).exits(before).tolist()
    )


def test_a_split_networks_gate_lets_as_many_stay() -> None:
    before = logits(1, 100, 1)
    gate = ThresholdPolicy((0.6,), "entropy")
    found = refitted(gate, before, 0.5 * before)
    assert found.num_exits == 2
    assert found(0, 0.5 * before[0]).sum() == gate(0, before[0]).sum() > 0


def test_int8_is_near_fp32_and_its_costs_are_measured(model: StoredModel, graphs: list[bytes]) -> None:
    inputs = np.random.default_rng(1).normal(size=(64, *SPEC.input_shape)).astype(np.float32)
    labels = all_logits(graphs, inputs)[-1].argmax(-1)  # fp32 is always right
    found = in_int8(graphs, inputs, labels, model.policy, [1, 2, 3])
    assert sum(map(len, found.graphs)) < 0.5 * sum(map(len, graphs))
    assert (found.costs.samples, found.costs.calibrated_on, found.costs.policy_refitted) == (64, 64, True)
    assert found.costs.accuracy_fp32[-1] == 1.0
    assert found.costs.accuracy[-1] > 0.85
    after = all_logits(found.graphs, inputs)
    assert found.costs.accuracy[-1] == (after[-1].argmax(-1) == labels).mean()
    assert found.costs.policy_macs == pytest.approx(found.costs.policy_macs_fp32)
    assert 0 < np.abs(after - all_logits(graphs, inputs)).max() < 0.5


def test_ranges_come_from_samples_of_all_classes(graphs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation samples may lie in class order."""
    seen = list[np.ndarray]()
    monkeypatch.setattr(quantize, "SAMPLES", 4)
    monkeypatch.setattr(quantize, "quantized", lambda graphs, inputs: seen.append(inputs) or graphs)
    inputs = np.arange(7, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones(SPEC.input_shape, np.float32)
    in_int8(graphs, inputs, np.zeros(7, int), ThresholdPolicy((0.9, 0.9), "softmax"), [1, 2, 3])
    assert seen[0][:, 0, 0, 0].tolist() == [0, 1, 3, 5]


def test_ranges_come_from_the_given_samples_and_the_classifier_stays_in_fp32(graphs: list[bytes]) -> None:
    narrow = quantized(graphs, 0.01 * samples(SPEC, 32).astype(np.float32) / 255)
    x = 8 * np.random.default_rng(1).normal(size=(32, *SPEC.input_shape)).astype(np.float32)
    wide = quantized(graphs, x)
    exact, clipped, near = (all_logits(each, x) for each in (graphs, narrow, wide))
    assert np.abs(clipped - exact).max() > 3 * np.abs(near - exact).max()
    for graph in wide:
        model = onnx.load(io.BytesIO(graph))
        (last,) = (node for node in model.graph.node if "logits" in node.output)
        assert last.op_type in ("Add", "Gemm")
        assert any(node.op_type == "DequantizeLinear" for node in model.graph.node)

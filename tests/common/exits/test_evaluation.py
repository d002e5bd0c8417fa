import dataclasses

import pytest
import torch

from common.errors import UserError
from common.exits import (
    BUDGET_SWEEP,
    anytime_accuracy,
    budgeted_curve,
    collect_logits,
    correct_counts,
)
from common.networks import EarlyExitNetwork, NetworkSpec, build


@pytest.fixture
def network() -> EarlyExitNetwork:
    return build(NetworkSpec(name="resnet_slim", num_classes=10, input_shape=(1, 8, 8)), seed=0)


def batches(sizes: tuple[int, ...], seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    random = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 8, 8, generator=random), torch.randint(10, (size,), generator=random)) for size in sizes
    ]


def test_collect_runs_the_network_once_per_batch(network: EarlyExitNetwork) -> None:
    calls: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    logits, labels = collect_logits(network, batches((5, 5, 3)))
    assert calls == [5, 5, 3]
    assert logits.shape == (len(network.exit_positions), 13, 10)
    assert torch.equal(labels, torch.cat([y for _, y in batches((5, 5, 3))]))


def test_collect_computes_in_eval_mode_and_restores_training(network: EarlyExitNetwork) -> None:
    network.train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    logits, _ = collect_logits(network, batches((8,)))
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())
    with torch.no_grad():
        expected = torch.stack(network.eval()(batches((8,))[0][0]))
    assert torch.equal(logits, expected)


def test_collect_keeps_eval_mode_and_leaves_no_graph(network: EarlyExitNetwork) -> None:
    logits, _ = collect_logits(network.eval(), batches((4,)))
    assert not network.training
    assert not logits.requires_grad


def test_collect_restores_training_after_an_error(network: EarlyExitNetwork) -> None:
    with pytest.raises(RuntimeError):
        collect_logits(network.train(), [(torch.zeros(2, 5, 8, 8), torch.zeros(2, dtype=torch.int64))])
    assert network.training


def test_collect_refuses_an_empty_set(network: EarlyExitNetwork) -> None:
    with pytest.raises(UserError, match="no samples"):
        collect_logits(network, [])


def test_counts_and_accuracy_match_results_by_hand() -> None:
    logits = torch.eye(3)[torch.tensor([[0, 1, 2, 0], [0, 1, 1, 1]])]
    labels = torch.tensor([0, 1, 1, 1])
    counts = correct_counts(logits, labels)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [2, 4]
    assert anytime_accuracy(logits, labels).tolist() == [0.5, 1.0]


def test_counts_of_clients_add_up() -> None:
    random = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 50, 4, generator=random)
    labels = torch.randint(4, (50,), generator=random)
    parts = [correct_counts(logits[:, part], labels[part]) for part in torch.arange(50).split(7)]
    assert torch.equal(torch.stack(parts).sum(0), correct_counts(logits, labels))


def curve_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    labels = torch.randint(5, (2, 300), generator=random)
    logits = torch.randn(2, 3, 300, 5, generator=random)
    # Deeper exits are more accurate.
    for depth in range(3):
        logits[:, depth] += (depth + 1) * torch.nn.functional.one_hot(labels, 5)
    return logits[0], labels[0], logits[1], labels[1]


def test_budgeted_curve_is_consistent() -> None:
    macs = [10.0, 20.0, 30.0]
    points = budgeted_curve(*curve_inputs(), macs)
    assert tuple(point.p for point in points) == BUDGET_SWEEP
    for point in points:
        assert sum(point.exit_histogram) == 300
        mean = sum(count * cost for count, cost in zip(point.exit_histogram, macs, strict=True)) / 300
        assert point.mean_macs == pytest.approx(mean, rel=1e-12)
    assert points[0].exit_histogram[0] > 290
    assert points[-1].exit_histogram[2] > 270
    assert points[-1].accuracy > points[0].accuracy
    assert [point.mean_macs for point in points] == sorted(point.mean_macs for point in points)


def test_curve_on_validation_data_equals_validation_accuracy() -> None:
    validation, labels, _, _ = curve_inputs()
    for point in budgeted_curve(validation, labels, validation, labels, [1.0, 2.0, 3.0]):
        assert point.accuracy == point.validation_accuracy


def test_thresholds_do_not_depend_on_the_test_set() -> None:
    validation, validation_labels, test, test_labels = curve_inputs()
    macs = [1.0, 2.0, 3.0]
    points = budgeted_curve(validation, validation_labels, test, test_labels, macs)
    permuted = test_labels[torch.randperm(300, generator=torch.Generator().manual_seed(3))]
    relabelled = budgeted_curve(validation, validation_labels, test, permuted, macs)
    blurred = budgeted_curve(validation, validation_labels, 0.1 * test, test_labels, macs)
    for point, other in zip(points, relabelled, strict=True):
        assert other == dataclasses.replace(point, accuracy=other.accuracy)
    assert [point.accuracy for point in relabelled] != [point.accuracy for point in points]
    assert [point.thresholds for point in blurred] == [point.thresholds for point in points]
    assert blurred[20].exit_histogram != points[20].exit_histogram


def test_thresholds_depend_on_validation_logits() -> None:
    validation, validation_labels, test, test_labels = curve_inputs()
    points = budgeted_curve(validation, validation_labels, test, test_labels, [1.0, 2.0, 3.0])
    others = budgeted_curve(0.5 * validation, validation_labels, test, test_labels, [1.0, 2.0, 3.0])
    assert points[20].thresholds != others[20].thresholds

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.data import DataConfig, load
from common.data.images import Normalizer, SampleSet
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.settings import read_section
from strategies.distree.training.central import Schedule, image_batches, train

CPU = torch.device("cpu")
NORMALIZE = Normalizer((0.5,), (0.5,))


@pytest.fixture(scope="module")
def digits() -> SampleSet:
    return load(DataConfig(), None).train.subset(torch.arange(200))


@pytest.fixture
def network(digits: SampleSet) -> EarlyExitNetwork:
    return build(NetworkSpec("lenet", 10, digits.shape, width=3), seed=1)


def run(
    network: EarlyExitNetwork, digits: SampleSet, schedule: Schedule, seed: int = 1
) -> tuple[EarlyExitNetwork, list[float]]:
    """Train a copy; return it and the mean loss of every epoch."""
    trained, losses = copy.deepcopy(network), []
    train(
        trained, lambda x, y: F.cross_entropy(trained(x)[-1], y), digits, NORMALIZE, schedule, seed, CPU,
        lambda epoch, loss, seconds: losses.append(loss),
    )  # fmt: skip
    return trained, losses


def test_schedule_warms_up_linearly_and_decays_as_a_cosine() -> None:
    schedule = Schedule(warmup=0.25)
    factors = [schedule.factor(step, 8) for step in range(9)]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 6)) for k in range(7)]
    assert factors == pytest.approx([0.5, 1.0, *cosine])
    assert factors[5] == pytest.approx(0.5)
    assert factors[8] == 0


def test_schedule_without_warm_up_starts_at_the_full_rate() -> None:
    assert [Schedule(warmup=0).factor(step, 3) for step in range(3)] == pytest.approx([1.0, 1.0, 0.5])


def test_schedule_reports_all_mistakes() -> None:
    assert read_section(Schedule).problems == []
    assert len(read_section(Schedule, epochs=0, batch_size=1, lr=0.0, warmup=-1.0).problems) == 4


def test_loss_falls_on_digits(digits: SampleSet) -> None:
    network = build(NetworkSpec("wrn16", 10, digits.shape), seed=1)
    trained, losses = run(network, digits, Schedule(epochs=6, batch_size=50, augment=False))
    assert len(losses) == 6
    assert losses[-1] < 0.5 * losses[0]
    assert not trained.training


def test_same_seed_gives_the_same_weights(network: EarlyExitNetwork, digits: SampleSet) -> None:
    schedule = Schedule(epochs=2, batch_size=50)
    first, again, other = (run(network, digits, schedule, seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_augmentation_changes_the_losses(network: EarlyExitNetwork, digits: SampleSet) -> None:
    with_crops, without = (
        run(network, digits, Schedule(epochs=1, batch_size=50, augment=augment))[1] for augment in (True, False)
    )
    assert with_crops != without


def test_training_equals_its_steps_by_hand() -> None:
    """One batch per epoch: Nesterov's SGD at the rates of the schedule."""
    images = SampleSet(
        torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1) * 30, torch.zeros(8, dtype=torch.int64), ("a",)
    )
    x = NORMALIZE(images.inputs).mean()
    layer = nn.Linear(1, 1, bias=False)
    start = layer.weight.item()
    schedule = Schedule(epochs=2, batch_size=8, lr=0.1, momentum=0.5, weight_decay=0.0, warmup=0.5, augment=False)
    train(layer, lambda x, y: (layer.weight * x).mean(), images, NORMALIZE, schedule, 1, CPU)
    # gradients x and x: velocity x, then 1.5 x; Nesterov steps with gradient + 0.5 velocity; both factors are 1
    expected = start - 0.1 * float(x) * (1.5 + 1.75)
    assert layer.weight.item() == pytest.approx(expected)


def test_frozen_parameters_are_not_trained(network: EarlyExitNetwork, digits: SampleSet) -> None:
    network.units.requires_grad_(False)
    trained, _ = run(network, digits, Schedule(epochs=1, batch_size=50))
    assert all(torch.equal(p, q) for p, q in zip(trained.units.parameters(), network.units.parameters(), strict=True))
    last = str(network.end)
    assert not torch.equal(trained.exits[last].linear.weight, network.exits[last].linear.weight)


def test_image_batches_are_in_order_and_normalised(digits: SampleSet) -> None:
    found = list(image_batches(digits, NORMALIZE, CPU, size=90))
    assert [len(labels) for _, labels in found] == [90, 90, 20]
    assert torch.equal(torch.cat([x for x, _ in found]), NORMALIZE(digits.inputs))
    assert torch.equal(torch.cat([labels for _, labels in found]), digits.labels)

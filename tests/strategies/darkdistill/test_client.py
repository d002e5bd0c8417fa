"""DarkDistill's client half: when difficulties are measured, and what of them is uploaded."""

import pytest
import torch

from common.config import load_config
from common.data.clients import ClientData
from common.networks import NetworkSpec, build
from common.weights.flat import FlatModel
from strategies.darkdistill import difficulty
from strategies.darkdistill.client import DIFFICULTY, LABELS, SKETCH, DarkDistillTraining
from strategies.darkdistill.settings import DifficultySettings
from strategies.method import Job, Outcome

CLASSES, SAMPLES = 10, 40
SPEC = NetworkSpec("resnet_slim", CLASSES, (1, 8, 8), width=4)  # its batch norm mixes the samples of a batch


def trained(samples: int = SAMPLES, **settings: object) -> Outcome:
    """Train a client on the first of the same samples, for two epochs."""
    flat = {f"difficulty.{key}": value for key, value in settings.items()}
    config = load_config({"train.batch-size": 8, "train.epochs": 2} | flat, [DifficultySettings])
    source = torch.Generator().manual_seed(1)
    x, y = torch.randn(SAMPLES, 1, 8, 8, generator=source)[:samples], (torch.arange(SAMPLES) % CLASSES)[:samples]
    data = ClientData(x, y, x[:0], y[:0], x[:0], y[:0])
    model = FlatModel(build(SPEC, 1))
    return DarkDistillTraining().train(Job(0, 4, 1, config, model, torch.device("cpu"), lambda: data, {"lr": 0.1}))


@pytest.fixture
def noiseless(monkeypatch):
    """Show the counts that the noise would be added to."""
    none = lambda shape, epsilon, rng: torch.zeros(shape, dtype=torch.float64)  # noqa: E731
    monkeypatch.setattr(difficulty, "_two_sided_geometric", none)


def test_one_sample_less_changes_one_count_of_a_private_sketch_by_one(noiseless):
    whole, less = (torch.from_numpy(trained(n, upload="sketch", epsilon=1.0).client_arrays[SKETCH])
                   for n in (SAMPLES, SAMPLES - 1))  # fmt: skip
    assert (whole.sum(), less.sum()) == (SAMPLES, SAMPLES - 1)
    assert (whole - less).abs().sum() == 1


def test_difficulties_of_training_are_uploaded_without_epsilon(noiseless):
    sketch = torch.from_numpy(trained(upload="sketch").client_arrays[SKETCH])
    less = torch.from_numpy(trained(SAMPLES - 1, upload="sketch").client_arrays[SKETCH])
    assert (sketch - less).abs().sum() > 1  # the sample's neighbours were measured on other weights
    arrays = trained().client_arrays
    pairs = difficulty.DifficultyPairs(*(torch.from_numpy(arrays[name]) for name in (DIFFICULTY, LABELS)))
    again = difficulty.DifficultySketch.build(pairs, CLASSES, bins=16, clip=10.0, epsilon=0.0, rng=torch.Generator())
    assert torch.equal(again.to_array(), sketch)


def test_the_exact_mean_is_no_metric_beside_a_private_sketch():
    assert set(trained(upload="sketch", epsilon=1.0).metrics) == {"loss"}
    assert set(trained(upload="sketch").metrics) == {"loss", "difficulty"}


def test_measuring_first_changes_no_trained_weight():
    private, plain = (trained(upload="sketch", epsilon=epsilon).state for epsilon in (1.0, 0.0))
    assert torch.equal(private.floats, plain.floats)

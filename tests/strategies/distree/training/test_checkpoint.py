"""A central training that is killed and continues ends with the bits of one that was not."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from common.data import DataConfig, load
from common.data.images import Normalizer, SampleSet
from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.storage.files import read_tensors
from strategies.distree.training.central import Schedule, train
from strategies.distree.training.checkpoint import FILE, Checkpoint

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=4, batch_size=50)


class Killed(Exception):
    """Ends a training after an epoch."""


@pytest.fixture
def digits() -> SampleSet:
    return load(DataConfig(), None).train.subset(torch.arange(120))


@pytest.fixture
def network(digits: SampleSet) -> EarlyExitNetwork:
    return build(NetworkSpec("wrn16", 10, digits.shape), seed=1)


def run(
    network: EarlyExitNetwork, digits: SampleSet, checkpoint: Checkpoint | None = None, kill_after: int = 0
) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Train a copy; return its weights and the epochs that were trained."""
    trained, epochs = copy.deepcopy(network), list[int]()

    def on_epoch(epoch: int, loss: float, seconds: float) -> None:
        epochs.append(epoch)
        if epoch == kill_after:
            raise Killed

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(F.dropout(trained(x)[-1], 0.2), y)

    train(trained, loss, digits, Normalizer((0.5,), (0.5,)), SCHEDULE, 1, CPU, on_epoch, checkpoint)
    return dict(trained.state_dict()), epochs


def test_killed_training_continues_with_the_same_bits(
    network: EarlyExitNetwork, digits: SampleSet, tmp_path: Path
) -> None:
    expected, _ = run(network, digits)
    checkpoint = Checkpoint(tmp_path / FILE, "this")
    with pytest.raises(Killed):
        run(network, digits, checkpoint, kill_after=2)
    torch.default_generator.manual_seed(99)
    found, epochs = run(network, digits, checkpoint)
    assert epochs == [3, 4]
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    assert read_tensors(checkpoint.path)[1]["epoch"] == 4
    again, epochs = run(network, digits, checkpoint)
    assert epochs == []
    assert all(torch.equal(value, expected[key]) for key, value in again.items())
    checkpoint.remove()
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_another_training_is_refused(
    network: EarlyExitNetwork, digits: SampleSet, tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        run(network, digits, Checkpoint(tmp_path / FILE, "this"), kill_after=1)
    with pytest.raises(UserError, match=r"checkpoint.safetensors is of a training with other settings: repeat these"):
        run(network, digits, Checkpoint(tmp_path / FILE, "another"))
    other = build(NetworkSpec("lenet", 10, digits.shape), seed=1)
    with pytest.raises(UserError, match=r"checkpoint.safetensors is damaged"):
        run(other, digits, Checkpoint(tmp_path / FILE, "this"))

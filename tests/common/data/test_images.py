import numpy as np
import pytest
import torch

from common.data import DataConfig, Normalizer, SampleSet, normalizer
from common.errors import UserError


def test_normalizer_matches_the_formula() -> None:
    images = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    result = Normalizer(mean, std)(images)
    expected = (images / 255 - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalised_images_lie_with_their_channels_last(channels: int) -> None:
    images = torch.zeros(4, channels, 5, 6, dtype=torch.uint8)
    assert Normalizer((0.5,), (0.5,))(images).stride() == (30 * channels, 1, 6 * channels, channels)


def test_normalizer_leaves_its_input_unchanged() -> None:
    images = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    assert Normalizer((0.5,), (0.5,))(images).unique().tolist() == [1.0]
    assert images.unique().tolist() == [255]


def test_normalizer_constants_come_from_config_then_set_then_half() -> None:
    assert normalizer(DataConfig(), channels=1).mean == (0.5,)
    assert normalizer(DataConfig(name="cifar100"), channels=3).mean == (0.5071, 0.4865, 0.4409)
    own = normalizer(DataConfig(name="cifar100", mean="0.4", std="1,2,3"), channels=3)
    assert (own.mean, own.std) == ((0.4,), (1.0, 2.0, 3.0))


def test_normalizer_refuses_constants_for_other_channels() -> None:
    with pytest.raises(UserError, match=r"data\.std has 3 constants, but the images have 1 channel"):
        normalizer(DataConfig(std="1,1,1"), channels=1)


def test_subset_copies_in_the_given_order() -> None:
    images = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).clone()
    whole = SampleSet(images, torch.arange(5), ("a", "b", "c", "d", "e"))
    part = whole.subset(np.array([3, 1]))
    assert part.labels.tolist() == [3, 1]
    assert part.inputs.flatten().tolist() == [3, 1]
    assert part.classes == whole.classes
    assert (len(part), part.shape) == (2, (1, 1, 1))
    part.inputs.zero_()
    assert images.flatten().tolist() == [0, 1, 2, 3, 4]


def test_set_moves_to_a_gpu_that_has_room_for_it(monkeypatch):
    samples = SampleSet(torch.zeros(100, 1, 4, 4, dtype=torch.uint8), torch.zeros(100, dtype=torch.int64), ("a",))
    moved = []
    monkeypatch.setattr(SampleSet, "to", lambda self, device: moved.append(device) or self)
    assert samples.resident(torch.device("cpu")) is samples
    gpu = torch.device("cuda")
    for free in (6399, 6400):  # a quarter of it must hold 1600 bytes
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10**9))
        samples.resident(gpu)
    assert moved == [gpu]

import pytest
import torch
from torch import Tensor

from common.data.augment import crop_and_flip


def one_by_one(images: Tensor, generator: torch.Generator, padding: int) -> Tensor:
    """Return what `crop_and_flip` should return, made with the same draws one image at a time."""
    count, channels, height, width = images.shape
    shift = torch.randint(2 * padding + 1, (2, count), generator=generator).tolist()
    flipped = torch.randint(2, (count, 1), generator=generator).flatten().tolist()
    result = []
    for image, down, right, flip in zip(images, *shift, flipped, strict=True):
        canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
        canvas[:, padding : padding + height, padding : padding + width] = image
        crop = canvas[:, down : down + height, right : right + width]
        result.append(crop.flip(2) if flip else crop)
    return torch.stack(result)


@pytest.mark.parametrize("padding", [1, 4])
@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_batch_equals_cropping_and_flipping_one_by_one(padding: int, kind: torch.dtype) -> None:
    images = torch.randint(1, 256, (40, 3, 6, 9), generator=torch.Generator().manual_seed(0)).to(kind)
    changed = crop_and_flip(images, torch.Generator().manual_seed(1), padding)
    assert changed.dtype == kind
    assert torch.equal(changed, one_by_one(images, torch.Generator().manual_seed(1), padding))


def test_every_shift_and_both_flips_occur() -> None:
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 1] = 1.0
    changed = crop_and_flip(image.expand(2000, 1, 5, 5), torch.Generator().manual_seed(0), padding=1)
    rows_columns = {(int(row), int(column)) for _, _, row, column in changed.nonzero()}
    # one row and column up or down; columns 1 and, mirrored, 3
    assert rows_columns == {(row, column) for row in (1, 2, 3) for column in (0, 1, 2, 3, 4)}


def test_without_padding_images_are_only_flipped() -> None:
    images = torch.arange(2 * 1 * 2 * 3.0).view(2, 1, 2, 3)
    changed = crop_and_flip(images, torch.Generator().manual_seed(0), padding=0)
    for before, after in zip(images, changed, strict=True):
        assert torch.equal(after, before) or torch.equal(after, before.flip(2))


def test_same_generator_gives_same_images_and_keeps_the_input() -> None:
    images = torch.rand(8, 3, 8, 8)
    before = images.clone()
    first, second = (crop_and_flip(images, torch.Generator().manual_seed(seed)) for seed in (3, 3))
    assert torch.equal(first, second)
    assert torch.equal(images, before)
    assert not torch.equal(crop_and_flip(images, torch.Generator().manual_seed(4)), first)

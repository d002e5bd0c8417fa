import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decode import decode, image_shape
from common.errors import UserError

RNG = np.random.default_rng(0)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_lossless_images_keep_their_pixels() -> None:
    colour = RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    grey = RNG.integers(0, 256, (4, 6), dtype=np.uint8)
    (decoded,) = decode([_png(colour)], (3, 4, 6), resize=False, where="image")
    np.testing.assert_array_equal(decoded, colour.transpose(2, 0, 1))
    (decoded,) = decode([_png(grey)], (1, 4, 6), resize=False, where="image")
    np.testing.assert_array_equal(decoded, grey[None])


def test_shape_has_colour_if_any_probed_image_has() -> None:
    grey, colour = _png(np.zeros((4, 6), np.uint8)), _png(np.zeros((4, 6, 3), np.uint8))
    assert image_shape([grey, grey], 0, where="image") == (1, 4, 6)
    assert image_shape([grey, colour], 0, where="image") == (3, 4, 6)
    assert image_shape([colour], 5, where="image") == (3, 5, 5)


def test_grey_becomes_colour_and_sizes_are_adapted() -> None:
    (decoded,) = decode([np.full((8, 8), 7, np.uint8)], (3, 16, 16), resize=True, where="image")
    assert decoded.shape == (3, 16, 16)
    assert np.unique(decoded).tolist() == [7]


def test_other_sizes_are_refused_without_resizing() -> None:
    with pytest.raises(UserError, match=r"test image 1 has 3x2 pixels but others have 6x4.*data\.image-size"):
        list(
            decode(
                [np.zeros((4, 6), np.uint8), np.zeros((2, 3), np.uint8)], (1, 4, 6), resize=False, where="test image"
            )
        )


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_truncated_image_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"cat.{kind.lower()}"
    Image.fromarray(RNG.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=r"cat\.\w+ cannot be read") as caught:
        list(decode([path], (3, 32, 32), resize=False, where="image"))
    assert "\n" not in str(caught.value)


def test_unreadable_bytes_are_named_by_number() -> None:
    with pytest.raises(UserError, match=r"train image 0 cannot be read as an image \(unknown file type\)"):
        list(decode([b"hello"], (3, 1, 1), resize=False, where="train image"))

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data.decode import Decoding, decode, image_shape, varied
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


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _one(item: bytes | Path, channels: int = 1, *others: bytes) -> np.ndarray:
    """Decode an image of a set of two pixels a row and one row, as the rows of its channels."""
    decoding = Decoding([item, *others])
    (pixels,) = decode([item], (channels, 1, 2), resize=False, where="image", part_of=decoding)
    decoding.check()
    return pixels[:, 0]


def _row(values: list[object], kind: type) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=kind))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_over_their_full_range(kind: str) -> None:
    dark = _encoded(_row([0, 5140], np.uint16), kind)
    assert _one(dark).tolist() == [[0, 20]]
    assert _one(_encoded(_row([65535, 257 * 100 + 129], np.uint16), kind)).tolist() == [[255, 101]]
    assert _one(dark, 3).tolist() == [[0, 20]] * 3


def test_16_bits_that_hold_8_are_refused_as_a_set() -> None:
    item, darker = (_encoded(_row([0, level], np.uint16)) for level in (255, 100))
    decoding = Decoding([item, darker])
    assert [p.tolist() for p in decode([item], (1, 1, 2), resize=False, where="image")] == [[[[0, 1]]]]
    list(decode([item, darker], (1, 1, 2), resize=False, where="image", part_of=decoding))
    with pytest.raises(UserError, match=r"^2 images with grey levels .* none above 255, .* save them with 8 bits"):
        decoding.check()


def test_big_endian_16_bits_are_scaled(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(_encoded(_row([257, 65535], np.dtype(">u2")), "TIFF"))
    with Image.open(tmp_path / "a.tif") as image:
        assert image.mode == "I;16B"
    assert _one(tmp_path / "a.tif").tolist() == [[1, 255]]


@pytest.mark.parametrize(
    ("kind", "levels", "pixels"), [(np.int32, (200, 51400), (1, 200)), (np.float32, (0.2, 1), (51, 255))]
)
def test_32_bits_are_scaled_alike_alone_and_in_a_set(kind: type, levels: list[float], pixels: list[int]) -> None:
    dark, bright = (_encoded(_row([0, level], kind), "TIFF") for level in levels)
    assert _one(dark).tolist() == _one(dark, 1, bright).tolist() == [[0, pixels[0]]]
    assert _one(bright).tolist() == _one(bright, 1, dark).tolist() == [[0, pixels[1]]]


@pytest.mark.parametrize(
    ("levels", "kind", "message"),
    [
        ([0, 70000], np.int32, "from 0 to 70000, must be from 0 to 65535"),
        ([-3, 70], np.int32, "from -3 to 70"),
        ([0.5, -0.5], np.float32, "from -0.5 to 0.5, must be from 0 to 1"),
        ([0.5, 200.0], np.float32, "from 0.5 to 200"),
        ([0.5, np.nan], np.float32, "from nan to nan"),
        ([0.5, np.inf], np.float32, "from 0.5 to inf"),
    ],
)
def test_levels_outside_the_range_are_a_damaged_file(levels: list[object], kind: type, message: str) -> None:
    items, good = [_encoded(_row(levels, kind), "TIFF"), _png(np.zeros((1, 2), np.uint8))], Decoding([b"", b""])
    assert len(list(decode(items, (1, 1, 2), resize=False, where="image", part_of=good))) == 1
    assert [image.name for image in good.damaged] == ["image 0"]
    assert f"its grey levels go {message}" in good.damaged[0].reason


def test_transparent_image_lies_on_white() -> None:
    shape = _encoded(_row([(0, 0, 0, 0), (0, 0, 0, 255)], np.uint8))
    assert _one(shape, 3).tolist() == [[255, 0]] * 3
    assert _one(_encoded(_row([(200, 0, 0, 51), (0, 0, 0, 255)], np.uint8)), 3).tolist() == [
        [244, 0],
        [204, 0],
        [204, 0],
    ]
    assert _one(_encoded(_row([(9, 0), (9, 255)], np.uint8))).tolist() == [[255, 9]]


def test_shape_that_white_hides_lies_on_black() -> None:
    assert _one(_encoded(_row([(255, 255, 255, 0), (255, 255, 255, 255)], np.uint8)), 3).tolist() == [[0, 255]] * 3
    assert _one(_encoded(_row([(230, 0), (230, 255)], np.uint8))).tolist() == [[0, 230]]
    assert _one(_encoded(_row([(0, 20), (0, 70)], np.uint8))).tolist() == [[235, 185]]  # faint, but darker than white


def test_opaque_image_with_alpha_keeps_its_pixels() -> None:
    opaque = _encoded(_row([(250, 240, 255, 255), (255, 255, 251, 255)], np.uint8))
    assert _one(opaque, 3).tolist() == [[250, 255], [240, 255], [255, 251]]


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_transparent_colour_of_a_palette_is_background(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 90, 80, 70])
    image.putpixel((1, 0), 1)
    assert _one(_encoded(image, kind, transparency=0), 3).tolist() == [[255, 90], [255, 80], [255, 70]]
    assert _one(_encoded(image, kind), 3).tolist() == [[0, 90], [0, 80], [0, 70]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3) * 50)
    exif = Image.Exif()
    exif[0x0112] = orientation
    item = _encoded(stored, kind, exif=exif, **({} if kind in ("PNG", "TIFF") else {"quality": 100}))
    turns = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose,
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
    }  # fmt: skip
    upright = turns[orientation](np.asarray(stored).astype(int))
    shape = image_shape([item], 0, where="image")
    assert shape[1:] == upright.shape
    (pixels,) = decode([item], shape, resize=False, where="image")
    assert np.abs(pixels[0] - upright).max() <= (0 if kind in ("PNG", "TIFF") else 12)


def test_damaged_orientation_leaves_the_image_as_it_is() -> None:
    item = _encoded(_row([7, 9], np.uint8), exif=b"Exif\0\0II*\0\xff\xff")
    assert _one(item).tolist() == [[7, 9]]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_several_is_used_and_counted(kind: str) -> None:
    frames = [Image.fromarray(np.full((1, 2, 3), level, np.uint8)) for level in (60, 200)]
    options = {"lossless": True} if kind == "WEBP" else {}
    item = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    decoding = Decoding([item, item])
    for pixels in decode([item, item], (1, 1, 2), resize=False, where="image", part_of=decoding):
        assert pixels.tolist() == [[[60, 60]]]
    assert "2 images with several frames or pages, of which only the first is used" in decoding.notes()


@pytest.mark.parametrize(
    ("mode", "kind", "colour"),
    [("CMYK", "TIFF", (0, 255, 255, 0)), ("YCbCr", "TIFF", (76, 85, 255)), ("CMYK", "JPEG", (0, 255, 255, 0))],
)
def test_colour_spaces_become_rgb(mode: str, kind: str, colour: tuple[int, ...]) -> None:
    red = _one(_encoded(Image.new(mode, (2, 1), colour), kind), 3)
    assert np.abs(red.astype(int) - np.array([[255, 255], [0, 0], [0, 0]])).max() <= 2


def test_bitmap_becomes_black_and_white() -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert _one(_encoded(image, "PPM")).tolist() == [[0, 255]]


def test_changes_are_counted() -> None:
    items = [
        _encoded(_row([0, 999], np.uint16)), _encoded(_row([(0, 0), (0, 255)], np.uint8)),
        _encoded(_row([(255, 0), (255, 255)], np.uint8)), _encoded(_row([(1, 2, 3), (3, 2, 1)], np.uint8)),
    ]  # fmt: skip
    decoding = Decoding(items)
    assert len(list(decode(items, (1, 1, 2), resize=False, where="image", part_of=decoding))) == 4
    assert decoding.notes() == [
        "1 image with colours that became grey", "1 image with grey levels scaled so that 65535 becomes 255",
        "1 image with transparent parts, laid on black", "1 image with transparent parts, laid on white",
    ]  # fmt: skip


def test_all_damaged_images_are_in_one_message() -> None:
    good = _png(np.zeros((1, 2), np.uint8))
    images = [b"no image" if number % 2 else good for number in range(30)]
    with pytest.raises(
        UserError, match=r"^15 images cannot be read: image 1 \(unknown file type\), .* and 5 more; "
    ) as caught:
        list(decode(images, (1, 1, 2), resize=False, where="image"))
    assert "data.skip-damaged=true" in str(caught.value)


def test_damaged_images_are_skipped_on_demand() -> None:
    images = [b"no image", _png(np.zeros((1, 2), np.uint8)), b""]
    decoding, positions = Decoding(images, skip_damaged=True), []
    assert image_shape(images, 0, where="image") == (1, 1, 2)
    pixels = list(decode(images, (1, 1, 2), resize=False, where="image", part_of=decoding, damaged=positions))
    decoding.check()
    assert (len(pixels), positions) == (1, [0, 2])
    assert decoding.notes() == ["left out: 2 images that cannot be read (image 0, image 2)"]


def test_set_without_a_readable_image_is_refused() -> None:
    with pytest.raises(UserError, match="2 images cannot be read: image 0"):
        image_shape([b"no image", b""], 0, where="image")
    decoding = Decoding([b""], skip_damaged=True)
    assert list(decode([b""], (1, 1, 1), resize=False, where="image", part_of=decoding)) == []
    with pytest.raises(UserError, match=r"image 0 cannot be read as an image \(.*\): replace or remove it$"):
        decoding.check()


def test_training_images_of_one_constant_are_refused() -> None:
    grey, other = np.full((3, 2, 2), 7, np.uint8), np.full((3, 2, 2), 8, np.uint8)
    assert len(list(varied([grey]))) == 1
    assert len(list(varied([grey, grey, other]))) == 3
    with pytest.raises(UserError, match="all pixels of all 2 training images have the value 7, 7, 7"):
        list(varied([grey, grey]))


def test_turned_photograph_looks_like_the_upright_one(cases_root: Path) -> None:
    turned, upright = (
        next(decode([cases_root / "exif_one" / name], (3, 32, 32), resize=False, where="image")).astype(int)
        for name in ("turned.jpg", "upright.jpg")
    )
    assert np.abs(turned - upright).mean() < 3

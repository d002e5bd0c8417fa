"""Encoded images -> uint8 arrays of one shape: the one decoder of training, devices and inference.

An image is used as a viewer shows it:

- upright, by its EXIF orientation; of an animation or several pages the first;
- on a background where it is transparent: white, or black where it would hardly show on white;
- with grey levels of 16 or 32 bits scaled to 8: 65535 becomes 255, and of floats 1. The image alone decides, so that
  one file gives the same pixels in training, on every device and in inference.
"""

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from common.data.raw import Encoded
from common.data.support import counted, listed, one_line, printable
from common.errors import UserError

_GREY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_TOPS = {"I;16": 65535, "I": 65535, "F": 1}  # the level that becomes 255, by mode
_HARDLY = 64  # an image whose grey levels differ by less than this hardly shows
_PROBED = 64


class Damaged(NamedTuple):
    """An image that cannot be read."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} cannot be read as an image ({self.reason})"


class Decoding:
    """The decoding of one set: what its images share, and counts of what was changed or could not be read."""

    def __init__(self, *splits: Sequence[Encoded], skip_damaged: bool = False) -> None:
        """Start with all images that will be decoded."""
        self.splits = splits
        self.skip_damaged = skip_damaged
        self.damaged: list[Damaged] = []
        self.counts: Counter[str] = Counter()  # changes by their description
        self.highest = defaultdict[int, list[float]](list)  # grey levels of scaled images, by what becomes 255

    def check(self) -> None:
        """Raise `UserError` if images were damaged, unless they are skipped and others are left, or became black."""
        for top, levels in self.highest.items():
            if len(levels) > 1 and 0 < max(levels) < top / 255:
                raise UserError(
                    f"{len(levels)} images with grey levels of 16 or 32 bits have none above {max(levels):g}, and "
                    f"would be black, since {top} is white: save them with 8 bits, or with levels from 0 to {top}"
                )
        if not self.damaged or (self.skip_damaged and len(self.damaged) < sum(map(len, self.splits))):
            return
        remedy = "replace or remove " + ("it" if len(self.damaged) == 1 else "them")
        if not self.skip_damaged:
            remedy += ", or set data.skip-damaged=true"
        if len(self.damaged) == 1:
            raise UserError(f"{self.damaged[0]}: {remedy}")
        names = listed([f"{image.name} ({image.reason})" for image in self.damaged])
        raise UserError(f"{len(self.damaged)} images cannot be read: {names}; {remedy}")

    def notes(self) -> list[str]:
        """Return a sentence for each kind of change, with the number of images."""
        notes = [f"{counted(number, 'image')} with {change}" for change, number in sorted(self.counts.items())]
        if self.damaged:
            names = listed([image.name for image in self.damaged])
            notes.append(f"left out: {counted(len(self.damaged), 'image')} that cannot be read ({names})")
        return notes


def image_shape(images: Sequence[Encoded], image_size: int, *, where: str) -> tuple[int, int, int]:
    """Return the (C, H, W) of a set's decoded images: grey only if no image of an evenly spaced sample has colour.

    Args:
        images: all of them; unreadable ones are passed over.
        image_size: side in pixels of the square to resize to; 0 = the size of the first image.
        where: the images' name in an error ("train image").

    Raises:
        UserError: no image can be read.
    """
    decoding = Decoding(images, skip_damaged=True)
    found = list(_probe(images, range(0, len(images), max(1, len(images) // _PROBED)), where, decoding))
    if not found:
        decoding = Decoding(images, skip_damaged=True)
        found = list(islice(_probe(images, range(len(images)), where, decoding), 1))
    decoding.check()
    channels = 1 if all(mode in _GREY_MODES for mode, _ in found) else 3
    width, height = (image_size, image_size) if image_size else found[0][1]
    return channels, height, width


def decode(
    images: Sequence[Encoded],
    shape: tuple[int, int, int],
    *,
    resize: bool,
    where: str,
    part_of: Decoding | None = None,
    damaged: list[int] | None = None,
) -> Iterator[NDArray[np.uint8]]:
    """Yield each image that can be read as uint8 (C, H, W) = `shape`.

    Args:
        images: encoded.
        shape: of each decoded image.
        resize: fit other sizes by bilinear resampling; otherwise they are an error.
        where: the images' name in an error ("train image").
        part_of: the decoding that notes changed and damaged images; without it damaged ones are an error at the end.
        damaged: where to put the positions of those that cannot be read.

    Raises:
        UserError: an image does not fit, or cannot be read.
    """
    decoding = part_of or Decoding(images)
    for number, item in enumerate(images):
        name = _name(item, where, number)
        try:
            pixels = _to_array(_open(item, decoding.counts), shape, resize, name, decoding)
        except UserError:
            raise
        except Exception as error:  # Pillow raises many kinds for files that are cut short, damaged or no images
            decoding.damaged.append(Damaged(name, _reason(error)))
            if damaged is not None:
                damaged.append(number)
            continue
        yield pixels
    if part_of is None:
        decoding.check()


def varied(images: Iterable[NDArray[np.uint8]]) -> Iterator[NDArray[np.uint8]]:
    """Yield the images of a training set; raise `UserError` at the end if two or more have one colour and no other."""
    colour: NDArray[np.uint8] | None = None
    number, same = 0, True
    for image in images:
        if same:
            colour = image[:, :1, :1] if colour is None else colour
            same = bool(np.all(image == colour))
        yield image
        number += 1
    if same and colour is not None and number > 1:
        raise UserError(
            f"all pixels of all {number} training images have the value {', '.join(map(str, colour.ravel()))}, so "
            f"nothing can be learnt from them: check the files"
        )


def _name(item: Encoded, where: str, number: int) -> str:
    return printable(str(item)) if isinstance(item, Path) else f"{where} {number}"


def _reason(error: Exception) -> str:
    return "unknown file type" if isinstance(error, UnidentifiedImageError) else one_line(error)


def _probe(
    images: Sequence[Encoded], numbers: Iterable[int], where: str, decoding: Decoding
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield mode and (width, height) of the images at the given positions that can be read."""
    for number in numbers:
        try:
            image = _open(images[number])
            yield image.mode, image.size
        except Exception as error:
            decoding.damaged.append(Damaged(_name(images[number], where, number), _reason(error)))


def _open(item: Encoded, counts: Counter[str] | None = None) -> Image.Image:
    """Return an image's first frame, upright."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # a damaged EXIF block beside good pixels
            upright = image.copy()
        with suppress(Exception):  # damaged frames after a good one
            if counts is not None and getattr(image, "is_animated", False):
                counts["several frames or pages, of which only the first is used"] += 1
    return upright


def _to_array(
    image: Image.Image, shape: tuple[int, int, int], resize: bool, name: str, decoding: Decoding
) -> NDArray[np.uint8]:
    channels, height, width = shape
    if image.size != (width, height) and not resize:
        raise UserError(
            f"{name} has {image.size[0]}x{image.size[1]} pixels but others have {width}x{height}: "
            f"set data.image-size to resize all images to one size"
        )
    if channels == 1 and image.mode not in _GREY_MODES:
        decoding.counts["colours that became grey"] += 1
    mode = "L" if channels == 1 else "RGB"
    pixels = _eight_bits(image, decoding)
    pixels = pixels if pixels.mode == mode else pixels.convert(mode)
    if pixels.size != (width, height):
        pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
    array = np.asarray(pixels)
    return array[np.newaxis] if channels == 1 else array.transpose(2, 0, 1)


def _wide(image: Image.Image) -> str:
    """Return the key of `_TOPS` for an image with grey levels of more than 8 bits; "" for others."""
    mode = "I;16" if image.mode.startswith("I;16") else image.mode
    return mode if mode in _TOPS else ""


def _eight_bits(image: Image.Image, decoding: Decoding) -> Image.Image:
    """Return an image without transparency whose levels go from 0 to 255."""
    if mode := _wide(image):
        top, levels = _TOPS[mode], np.asarray(image)
        low, high = float(levels.min()), float(levels.max())
        if not 0 <= low <= high <= top:  # NaN compares false
            raise ValueError(f"its grey levels go from {low:g} to {high:g}, must be from 0 to {top}")
        decoding.counts[f"grey levels scaled so that {top} becomes 255"] += 1
        decoding.highest[top].append(high)
        return Image.fromarray(np.rint(levels * (255.0 / top)).astype(np.uint8))
    return _on_background(image, decoding.counts) if image.has_transparency_data else image


def _on_background(image: Image.Image, counts: Counter[str]) -> Image.Image:
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return image
    colours = rgba.convert("RGB")
    white, black = (Image.composite(colours, Image.new("RGB", image.size, c), alpha) for c in ("white", "black"))
    dark = _contrast(white) < min(_HARDLY, _contrast(black))
    counts[f"transparent parts, laid on {'black' if dark else 'white'}"] += 1
    return black if dark else white


def _contrast(image: Image.Image) -> int:
    levels = np.asarray(image.convert("L"))
    return int(np.ptp(levels))

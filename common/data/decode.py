"""Encoded images -> uint8 arrays of one shape."""

import io
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from common.data.raw import Encoded
from common.data.support import one_line
from common.errors import UserError

# Pillow raises these for files that are cut short, damaged, no images, or far too large.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "F")
_PROBED = 64


def image_shape(images: Sequence[Encoded], image_size: int, *, where: str) -> tuple[int, int, int]:
    """Return the (C, H, W) of a set's decoded images: grey only if no image of an evenly spaced sample has colour.

    Args:
        images: all of them.
        image_size: side in pixels of the square to resize to; 0 = the size of the first image.
        where: the images' name in an error ("train image").

    Raises:
        UserError: an image cannot be read.
    """
    step = max(1, len(images) // _PROBED)
    headers = [_header(images[number], _name(images[number], where, number)) for number in range(0, len(images), step)]
    channels = 1 if all(mode in _GREY_MODES for mode, _ in headers) else 3
    width, height = (image_size, image_size) if image_size else headers[0][1]
    return channels, height, width


def decode(
    images: Sequence[Encoded], shape: tuple[int, int, int], *, resize: bool, where: str
) -> Iterator[NDArray[np.uint8]]:
    """Yield each image as uint8 (C, H, W) = `shape`.

    Args:
        images: encoded.
        shape: of each decoded image.
        resize: fit other sizes by bilinear resampling; otherwise they are an error.
        where: the images' name in an error ("train image").

    Raises:
        UserError: an image cannot be read or does not fit.
    """
    for number, item in enumerate(images):
        yield _to_array(item, shape, resize, _name(item, where, number))


def _name(item: Encoded, where: str, number: int) -> str:
    return str(item) if isinstance(item, Path) else f"{where} {number}"


def _header(item: Encoded, where: str) -> tuple[str, tuple[int, int]]:
    """Return mode and (width, height) without decoding any pixel."""
    with _open(item, where) as image:
        return image.mode, image.size


def _open(item: Encoded, where: str) -> Image.Image:
    """Open lazily: pixels are decoded when they are first used."""
    if isinstance(item, np.ndarray):
        return Image.fromarray(item)
    try:
        return Image.open(io.BytesIO(item) if isinstance(item, bytes) else item)
    except _DAMAGE as error:
        raise _unreadable(where, error) from error


def _to_array(item: Encoded, shape: tuple[int, int, int], resize: bool, where: str) -> NDArray[np.uint8]:
    channels, height, width = shape
    mode = "L" if channels == 1 else "RGB"
    with _open(item, where) as image:
        if image.size != (width, height) and not resize:
            raise UserError(
                f"{where} has {image.size[0]}x{image.size[1]} pixels but others have {width}x{height}: "
                f"set data.image-size to resize all images to one size"
            )
        try:
            pixels = image if image.mode == mode else image.convert(mode)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(pixels)
        except _DAMAGE as error:
            raise _unreadable(where, error) from error
    return array[np.newaxis] if channels == 1 else array.transpose(2, 0, 1)


def _unreadable(where: str, error: BaseException) -> UserError:
    reason = "unknown file type" if isinstance(error, UnidentifiedImageError) else one_line(error)
    return UserError(f"{where} cannot be read as an image ({reason}): replace or remove it")

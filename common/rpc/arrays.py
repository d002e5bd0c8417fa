"""Arrays on the wire: fp32, fp16, bf16, or bytes with a scale and an offset per channel.

Before an array is made, the declared numbers are checked against each other, against the shape that the receiver
expects and against the received bytes. `tensors.py` has the same for torch's tensors.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.rpc.framing import CODINGS, Data
from common.rpc.split_pb2 import BF16, FP16, FP32, UINT8, Features

# numpy has no bfloat16: its bits are the upper half of a float32's
STORED: dict[int, np.dtype[Any]] = {
    FP32: np.dtype("<f4"), FP16: np.dtype("<f2"), BF16: np.dtype("<u2"), UINT8: np.dtype("u1")
}  # fmt: skip
NAMES: dict[int, str] = {number: name for name, number in CODINGS.items()}
LEVELS = 255
BLOCK = 1 << 16  # values that are rounded to bf16 at a time, so that they stay in the processor's cache
INFINITY: dict[int, int] = {FP16: 0x7C00, BF16: 0x7F80}  # its bits; those of NaN are above


def narrow(array: NDArray[np.float32], coding: int) -> NDArray[Any]:
    """Return the nearest value of each in fp16, ties to even, or the bits of the nearest in bf16."""
    if coding == FP16:
        return np.ascontiguousarray(array, STORED[FP16])
    bits = np.ascontiguousarray(array).reshape(-1).view(np.uint32)
    found = np.empty(bits.shape, STORED[BF16])
    for start in range(0, len(bits), BLOCK):
        block = bits[start : start + BLOCK]
        found[start : start + BLOCK] = (block + ((block >> 16) & 1) + 0x7FFF) >> 16
    return found


def widen(values: NDArray[Any], coding: int) -> NDArray[np.float32]:
    """Return the float32 values that `narrow` made smaller."""
    return values.astype(np.float32) if coding == FP16 else (values.astype(np.uint32) << 16).view(np.float32)


def encode(
    array: NDArray[Any], coding: str, narrow: Callable[[NDArray[np.float32], int], NDArray[Any]] = narrow
) -> tuple[Features, Data]:
    """Return the description and the bytes of an array (B, C, H, W), (B, N, D) or (B, D) of floats.

    `coding` is a key of `CODINGS`: "fp32" is exact; "fp16" and "bf16" round to nearest; "uint8" divides each channel's
    range over the batch into 255 steps and is off by half a step at most, but a 0 stays 0, as padding must. The bytes
    may be a view of the array.
    Raises `ValueError` when a value is not finite or, for "fp16", above 65504.
    """
    array, code = np.asarray(array, np.float32), CODINGS[coding]
    features = Features(coding=code, shape=array.shape)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused below
        if code == UINT8:
            values = _levels(array, features)
        else:
            values = np.ascontiguousarray(array) if code == FP32 else narrow(array, code)
            _check_finite(values, code)
    return features, values.reshape(-1).view(np.uint8).data


def decode(
    features: Features,
    data: Data,
    sample_shape: tuple[int, ...],
    max_samples: int,
    widen: Callable[[NDArray[Any], int], NDArray[np.float32]] = widen,
) -> NDArray[np.float32]:
    """Return the float32 array `(B, *sample_shape)`, 1 <= B <= max_samples, in its own memory.

    Raises `ValueError` when the message is not exactly such an array, or a value is not finite.
    """
    shape = tuple(features.shape)
    stored = STORED.get(features.coding)
    if stored is None:
        raise ValueError(f"unknown coding {features.coding}")
    _check(shape, len(data), stored.itemsize, sample_shape, max_samples)
    channel, _ = _channels(len(shape))
    levels = shape[channel] if features.coding == UINT8 else 0
    if len(features.scale) != levels or len(features.offset) != levels:
        raise ValueError(f"{len(features.scale)} scales and {len(features.offset)} offsets came, not {levels}")
    received = np.frombuffer(data, stored).reshape(shape)
    values = widen(received, features.coding) if features.coding in (FP16, BF16) else received.astype(np.float32)
    if levels:
        along = [-1 if i == channel else 1 for i in range(len(shape))]
        with np.errstate(over="ignore", invalid="ignore"):
            values *= np.asarray(features.scale, np.float32).reshape(along)
            values += np.asarray(features.offset, np.float32).reshape(along)
    _check_finite(values)
    return values


def decode_pixels(
    shape: Sequence[int], data: Data, sample_shape: tuple[int, ...], max_samples: int
) -> NDArray[np.uint8]:
    """Return the uint8 array `(B, *sample_shape)`, 1 <= B <= max_samples, in its own memory, one byte per value.

    Raises `ValueError` when the message is not exactly such an array.
    """
    _check(tuple(shape), len(data), 1, sample_shape, max_samples)
    return np.frombuffer(data, np.uint8).reshape(tuple(shape)).copy()


def bytes_per_sample(sample_shape: tuple[int, ...], coding: str) -> int:
    """Return the bytes of one sample's values on the wire; scales and offsets come once per batch."""
    return math.prod(sample_shape) * STORED[CODINGS[coding]].itemsize


def _levels(array: NDArray[np.float32], features: Features) -> NDArray[np.uint8]:
    """Return the nearest of each channel's 256 levels, and add their scales and offsets to the description."""
    _, others = _channels(array.ndim)
    low, high = array.min(others, keepdims=True), array.max(others, keepdims=True)
    step = (high - low) / np.float32(LEVELS)
    _check_finite(np.stack((low, step)), UINT8)
    # a constant channel has no step; all its values are the offset
    divisor = np.where(step == 0, np.float32(1), step)
    # where a channel has zeros, one of its levels is 0: the range moves by half a step at most
    low = np.where((array == 0).any(others, keepdims=True), -np.rint(-low / divisor) * step, low)
    features.scale.extend(step.reshape(-1).tolist())
    features.offset.extend(low.reshape(-1).tolist())
    values = (array - low) / divisor
    return np.ascontiguousarray(np.clip(np.rint(values), 0, LEVELS).astype(np.uint8))


def _check(shape: tuple[int, ...], size: int, itemsize: int, sample_shape: tuple[int, ...], max_samples: int) -> None:
    if len(shape) != 1 + len(sample_shape) or shape[1:] != tuple(sample_shape):
        raise ValueError(f"samples of shape {shape[1:]} came, {tuple(sample_shape)} is expected")
    if not 1 <= shape[0] <= max_samples:
        raise ValueError(f"{shape[0]} samples came, 1 to {max_samples} are allowed")
    if size != math.prod(shape) * itemsize:
        raise ValueError(f"{size} bytes came, {math.prod(shape) * itemsize} are expected")


def _channels(dimensions: int) -> tuple[int, tuple[int, ...]]:
    """Return the channel's dimension and all others."""
    channel = 1 if dimensions == 4 else dimensions - 1
    return channel, tuple(i for i in range(dimensions) if i != channel)


def _check_finite(values: NDArray[Any], code: int = 0) -> None:
    # NaN and infinity show in the extremes, which take a fraction of the time of `isfinite().all()`
    if code in INFINITY:
        finite = (values.view(np.uint16) & 0x7FFF).max(initial=0) < INFINITY[code]
    else:
        finite = not values.size or (math.isfinite(values.min()) and math.isfinite(values.max()))
    if not finite:
        raise ValueError(f"some features are not finite as {NAMES.get(code, 'these')} values")

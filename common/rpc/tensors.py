"""Tensors on the wire: fp32, fp16, bf16, or bytes with a scale and an offset per channel.

Before a tensor is made, the declared numbers are checked against each other, against the shape that the receiver
expects and against the received bytes.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.rpc.framing import CODINGS, Data
from common.rpc.split_pb2 import BF16, FP16, FP32, UINT8, Features

DTYPES = {FP32: torch.float32, FP16: torch.float16, BF16: torch.bfloat16, UINT8: torch.uint8}
LEVELS = 255


def encode(tensor: Tensor, coding: str) -> tuple[Features, Data]:
    """Return the description and the bytes of a float tensor (B, C, H, W), (B, N, D) or (B, D).

    `coding` is a key of `CODINGS`: "fp32" is exact; "fp16" and "bf16" round to nearest; "uint8" divides each channel's
    range over the batch into 255 steps and is off by half a step at most. The bytes may be a view of the tensor.
    Raises `ValueError` when a value is not finite or, for "fp16", above 65504.
    """
    tensor = tensor.detach().to("cpu", torch.float32)
    features = Features(coding=CODINGS[coding], shape=tensor.shape)
    if coding == "uint8":
        _, others = _channels(tensor.dim())
        low, high = tensor.amin(others, keepdim=True), tensor.amax(others, keepdim=True)
        step = high.sub(low).div_(LEVELS)
        _finite(torch.stack((low, step)), coding)
        features.scale.extend(step.flatten().tolist())
        features.offset.extend(low.flatten().tolist())
        # a constant channel has no step; all its values are the offset
        values = tensor.sub(low).div_(step.masked_fill(step == 0, 1)).round_().clamp_(0, LEVELS).to(torch.uint8)
    else:
        values = tensor.to(DTYPES[CODINGS[coding]]).contiguous()
        _finite(values, coding)
    return features, values.contiguous().view(torch.uint8).flatten().numpy().data


def decode(features: Features, data: Data, sample_shape: tuple[int, ...], max_samples: int) -> Tensor:
    """Return the float32 tensor `(B, *sample_shape)`, 1 <= B <= max_samples, in its own memory.

    Raises `ValueError` when the message is not exactly such a tensor, or a value is not finite.
    """
    shape = tuple(features.shape)
    dtype = DTYPES.get(features.coding)
    if dtype is None:
        raise ValueError(f"unknown coding {features.coding}")
    _check(shape, len(data), dtype.itemsize, sample_shape, max_samples)
    channel, _ = _channels(len(shape))
    levels = shape[channel] if dtype == torch.uint8 else 0
    if len(features.scale) != levels or len(features.offset) != levels:
        raise ValueError(f"{len(features.scale)} scales and {len(features.offset)} offsets came, not {levels}")
    values = _copied(data).view(dtype).view(shape).float()
    if levels:
        along = [-1 if i == channel else 1 for i in range(len(shape))]
        values.mul_(torch.tensor(list(features.scale)).view(along))
        values.add_(torch.tensor(list(features.offset)).view(along))
    _finite(values, "these")
    return values


def decode_pixels(shape: Sequence[int], data: Data, sample_shape: tuple[int, ...], max_samples: int) -> Tensor:
    """Return the uint8 tensor `(B, *sample_shape)`, 1 <= B <= max_samples, in its own memory, one byte per value.

    Raises `ValueError` when the message is not exactly such a tensor.
    """
    _check(tuple(shape), len(data), 1, sample_shape, max_samples)
    return _copied(data).view(tuple(shape))


def bytes_per_sample(sample_shape: tuple[int, ...], coding: str) -> int:
    """Return the bytes of one sample's values on the wire; scales and offsets come once per batch."""
    return math.prod(sample_shape) * DTYPES[CODINGS[coding]].itemsize


def _check(shape: tuple[int, ...], size: int, itemsize: int, sample_shape: tuple[int, ...], max_samples: int) -> None:
    if len(shape) != 1 + len(sample_shape) or shape[1:] != tuple(sample_shape):
        raise ValueError(f"samples of shape {shape[1:]} came, {tuple(sample_shape)} is expected")
    if not 1 <= shape[0] <= max_samples:
        raise ValueError(f"{shape[0]} samples came, 1 to {max_samples} are allowed")
    if size != math.prod(shape) * itemsize:
        raise ValueError(f"{size} bytes came, {math.prod(shape) * itemsize} are expected")


def _copied(data: Data) -> Tensor:
    raw = torch.empty(len(data), dtype=torch.uint8)
    # through numpy: torch warns about read-only memory, although the message is only read
    np.copyto(raw.numpy(), np.frombuffer(data, np.uint8))
    return raw


def _channels(dimensions: int) -> tuple[int, tuple[int, ...]]:
    """Return the channel's dimension and all others."""
    channel = 1 if dimensions == 4 else dimensions - 1
    return channel, tuple(i for i in range(dimensions) if i != channel)


def _finite(values: Tensor, coding: str) -> None:
    # NaN and infinity show in the extremes, which take a fraction of the time of `isfinite().all()`
    low, high = torch.aminmax(values)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"some features are not finite as {coding} values")

"""Torch's tensors on the wire, as `arrays.py` encodes and decodes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.rpc import arrays
from common.rpc.arrays import bytes_per_sample
from common.rpc.framing import CODINGS, Data
from common.rpc.split_pb2 import BF16, FP16, Features

__all__ = ["CODINGS", "bytes_per_sample", "decode", "decode_pixels", "encode"]

HALVES: dict[int, torch.dtype] = {FP16: torch.float16, BF16: torch.bfloat16}


def encode(tensor: Tensor, coding: str) -> tuple[Features, Data]:
    """Return the description and the bytes of a tensor of floats; see `arrays.encode`."""
    return arrays.encode(tensor.detach().to("cpu", torch.float32).numpy(), coding, _narrow)


def decode(features: Features, data: Data, sample_shape: tuple[int, ...], max_samples: int) -> Tensor:
    """Return the float32 tensor `(B, *sample_shape)`; see `arrays.decode`."""
    return torch.from_numpy(arrays.decode(features, data, sample_shape, max_samples, _widen))


def decode_pixels(shape: Sequence[int], data: Data, sample_shape: tuple[int, ...], max_samples: int) -> Tensor:
    """Return the uint8 tensor `(B, *sample_shape)`; see `arrays.decode_pixels`."""
    return torch.from_numpy(arrays.decode_pixels(shape, data, sample_shape, max_samples))


# torch converts up to forty times as fast as numpy, to the same bits: training sends megabytes a batch


def _narrow(array: NDArray[np.float32], code: int) -> NDArray[Any]:
    return torch.from_numpy(array).to(HALVES[code]).contiguous().view(torch.int16).numpy().view(arrays.STORED[code])


def _widen(values: NDArray[Any], code: int) -> NDArray[np.float32]:
    # copied: torch warns about read-only memory, although the message is only read
    found: NDArray[np.float32] = torch.from_numpy(values.view(np.int16).copy()).view(HALVES[code]).float().numpy()
    return found

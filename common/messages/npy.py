"""Read an .npy file from an untrusted sender: nothing is unpickled, and no memory is taken for data that did not come.

numpy itself allocates the announced size before it checks how much data follows: a message of 200 bytes could take all
of a server's memory.
"""

import math
from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_HEADER = 1024  # bytes; numpy writes 128 for any array of a few dimensions
NUMBERS = "biuf"  # kinds: bool, integers, floats
MAX_ITEM = 8  # bytes of a number


def read_npy(data: bytes) -> NDArray[Any]:
    """Return the array of numbers that an .npy file of version 1.0 holds, read-only: a view of `data`.

    Raises `ValueError` for any other content, such as objects, and for more or less data than the header announces.
    """
    stream = BytesIO(data)
    if npy.read_magic(stream) != (1, 0):
        raise ValueError("an array is not in version 1.0 of the .npy format")
    try:
        shape, fortran, dtype = npy.read_array_header_1_0(stream, max_header_size=MAX_HEADER)
    except (ArithmeticError, MemoryError, RecursionError, TypeError) as error:
        raise ValueError(f"an array's header cannot be read: {type(error).__name__}") from error
    if dtype.kind not in NUMBERS or dtype.itemsize > MAX_ITEM or dtype.shape:
        raise ValueError(f"an array holds {dtype}, not numbers")
    start = stream.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"an array of {len(data) - start} bytes announces shape {_short(shape)}")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if fortran else "C")


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 80 else f"{text[:80]}..."

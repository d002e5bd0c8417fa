"""Read an .npy file from an untrusted sender: nothing is unpickled, and no memory is taken for data that did not come.

numpy itself allocates the announced size before it checks how much data follows: a message of 200 bytes could take all
of a server's memory. It also reads the header with Python's parser, which fails now and then where threads read at the
same time (`SystemError` on Python 3.11: they share one count of the parser's depth).
"""

import math
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0, which numpy writes for any header under 64 KiB
LENGTH = 2  # bytes, little-endian
# what numpy.save writes for bool, integers and floats of up to 8 bytes: dtype, order and sizes, then spaces
HEADER = re.compile(
    rb"\{'descr': '(?P<dtype>[<>|](?:b1|[iu][1248]|f[248]))', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d+,|\d+(?:, \d+)+)?)\), \} *\n"
)


def read_npy(data: bytes) -> NDArray[Any]:
    """Return the array of numbers that an .npy file of version 1.0 holds, read-only: a view of `data`.

    Raises `ValueError` for any other content, such as objects, and for more or less data than the header announces.
    """
    if not data.startswith(MAGIC):
        raise ValueError("an array is not in version 1.0 of the .npy format")
    begin = len(MAGIC) + LENGTH
    start = begin + int.from_bytes(data[len(MAGIC) : begin], "little")
    header = HEADER.fullmatch(data[begin:start])
    if header is None:
        raise ValueError(f"an array's header is not that of numbers: {data[begin:start][:80]!r}")
    dtype = np.dtype(header["dtype"].decode())
    shape = tuple(int(size) for size in header["shape"].split(b",") if size)
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"an array of {len(data) - start} bytes announces shape {_short(shape)}")
    values = np.frombuffer(data, dtype, math.prod(shape), start)
    return values.reshape(shape, order="F" if header["fortran"] == b"True" else "C")


def _short(shape: tuple[int, ...]) -> str:
    text = str(shape)
    return text if len(text) < 80 else f"{text[:80]}..."

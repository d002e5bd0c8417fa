"""The embedded set: handwritten digits from UCI, 1797 real 8x8 grey images in ten classes, part of scikit-learn."""

import numpy as np

from common.data.raw import RawSet, RawSplit
from common.data.support import package_folder

SHAPE = (-1, 8, 8)
_WHITE = 16  # a pixel counts the inked pixels of a 4x4 block, so its values go from 0 to 16


def read_digits() -> RawSet:
    """Read the digits from the installed package, whose import would take seconds; they have no test split.

    Raises `UserError` if the package is missing.
    """
    file = package_folder("sklearn", "the embedded set 'digits'") / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")  # a row per image: its pixels, then its class
    pixels = np.rint(table[:, :-1] * (255 / _WHITE)).astype(np.uint8).reshape(SHAPE)
    split = RawSplit(list(pixels), table[:, -1].astype(np.int64))
    return RawSet(split, None, tuple(str(digit) for digit in range(10)))

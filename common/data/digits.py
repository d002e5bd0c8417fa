"""The embedded set: handwritten digits from UCI, 1797 real 8x8 grey images in ten classes, part of scikit-learn."""

import numpy as np

from common.data.raw import RawSet, RawSplit
from common.data.support import require

# A pixel counts the inked pixels of a 4x4 block, so its values go from 0 to 16.
_WHITE = 16


def read_digits() -> RawSet:
    """Read the digits from the installed package; they have no test split."""
    bunch = require("sklearn.datasets", "the embedded set 'digits'").load_digits()
    pixels = np.rint(bunch.images * (255 / _WHITE)).astype(np.uint8)
    split = RawSplit(list(pixels), bunch.target.astype(np.int64))
    return RawSet(split, None, tuple(str(name) for name in bunch.target_names))

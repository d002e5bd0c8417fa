"""A client's own training and validation samples."""

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed


def client_split(
    indices: NDArray[np.int64], validation: float, seed: int, client_id: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split a client's sample indices (n,) at random into sorted (training, validation).

    `validation` is the share in [0, 1), rounded to whole samples; one sample at least is left for training. A client
    without samples gets two empty arrays.
    """
    count = max(0, min(round(validation * len(indices)), len(indices) - 1))
    order = np.random.default_rng(derive_seed(seed, "validation", client_id)).permutation(indices)
    return np.sort(order[count:]), np.sort(order[:count])

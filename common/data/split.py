"""A client's own training, validation and test samples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.seeding import derive_seed


class ClientSplit(NamedTuple):
    """One client's sample indices, each part sorted; no sample is in two parts."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


def client_split(
    indices: NDArray[np.int64], validation: float, seed: int, client_id: int, *, test: float = 0.0
) -> ClientSplit:
    """Split a client's sorted sample indices (n,) at random.

    `test` is the share of all samples kept for testing and `validation` that of the rest, both in [0, 1) and rounded
    to whole samples. At least one sample is left for training. A client without samples gets empty arrays.
    """
    rest, own_test = _hold_out(indices, test, derive_seed(seed, "client test", client_id))
    train, held_out = _hold_out(rest, validation, derive_seed(seed, "validation", client_id))
    return ClientSplit(train, held_out, own_test)


def _hold_out(indices: NDArray[np.int64], share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return sorted (rest, held out)."""
    count = max(0, min(round(share * len(indices)), len(indices) - 1))
    order = np.random.default_rng(seed).permutation(indices)
    return np.sort(order[count:]), np.sort(order[:count])

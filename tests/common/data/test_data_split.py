import numpy as np
import pytest

from common.data import client_split


@pytest.mark.parametrize(
    ("samples", "share", "held_out"), [(10, 0.2, 2), (10, 0.0, 0), (3, 0.2, 1), (2, 0.9, 1), (1, 0.9, 0)]
)
def test_sizes(samples: int, share: float, held_out: int) -> None:
    indices = np.arange(100, 100 + samples)
    train, validation = client_split(indices, share, seed=1, client_id=0)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == indices.tolist()


def test_a_client_without_samples_gets_empty_arrays() -> None:
    train, validation = client_split(np.array([], dtype=np.int64), 0.2, seed=1, client_id=0)
    assert (len(train), len(validation)) == (0, 0)
    assert train.dtype == np.int64


def test_the_split_depends_on_seed_and_client_alone() -> None:
    indices = np.arange(100)
    held_out = {key: tuple(client_split(indices, 0.2, *key)[1]) for key in [(1, 0), (1, 1), (2, 0)]}
    assert len(set(held_out.values())) == 3
    assert tuple(client_split(indices, 0.2, 1, 0)[1]) == held_out[1, 0]
    assert list(held_out[1, 0]) == sorted(held_out[1, 0])

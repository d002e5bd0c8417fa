import numpy as np
import pytest

from common.data import client_split


@pytest.mark.parametrize(
    ("samples", "share", "held_out"), [(10, 0.2, 2), (10, 0.0, 0), (3, 0.2, 1), (2, 0.9, 1), (1, 0.9, 0)]
)
def test_validation_size_is_the_rounded_share(samples: int, share: float, held_out: int) -> None:
    indices = np.arange(100, 100 + samples)
    train, validation, _ = client_split(indices, share, seed=1, client_id=0)
    assert len(validation) == held_out
    assert sorted([*train, *validation]) == indices.tolist()


def test_client_without_samples_gets_empty_arrays() -> None:
    train, validation, test = client_split(np.array([], dtype=np.int64), 0.2, seed=1, client_id=0)
    assert (len(train), len(validation), len(test)) == (0, 0, 0)
    assert train.dtype == np.int64


def test_split_depends_on_seed_and_client_alone() -> None:
    indices = np.arange(100)
    held_out = {key: tuple(client_split(indices, 0.2, *key)[1]) for key in [(1, 0), (1, 1), (2, 0)]}
    assert len(set(held_out.values())) == 3
    assert tuple(client_split(indices, 0.2, 1, 0)[1]) == held_out[1, 0]
    assert list(held_out[1, 0]) == sorted(held_out[1, 0])


@pytest.mark.parametrize(
    ("samples", "validation", "test", "sizes"),
    [(100, 0.2, 0.25, (60, 15, 25)), (4, 0.0, 0.25, (3, 0, 1)), (2, 0.9, 0.9, (1, 0, 1)), (1, 0.9, 0.9, (1, 0, 0))],
)
def test_parts_are_disjoint_and_the_test_part_is_taken_first(samples, validation, test, sizes) -> None:
    indices = np.arange(100, 100 + samples)
    parts = client_split(indices, validation, seed=1, client_id=0, test=test)
    assert tuple(map(len, parts)) == sizes
    assert sorted(np.concatenate(parts)) == indices.tolist()
    again = client_split(indices, validation, seed=1, client_id=0, test=test)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


def test_test_part_does_not_depend_on_the_validation_share() -> None:
    indices = np.arange(100)
    assert np.array_equal(
        client_split(indices, 0.0, 1, 0, test=0.25).test, client_split(indices, 0.5, 1, 0, test=0.25).test
    )
    assert not np.array_equal(
        client_split(indices, 0.2, 1, 0, test=0.2).test, client_split(indices, 0.2, 1, 0).validation
    )

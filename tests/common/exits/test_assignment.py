import pytest
import torch

from common.exits import assign_exits, exit_counts, exit_fractions


def two_class(confidences: list[float]) -> torch.Tensor:
    """Return logits whose max-softmax confidences have the order of the given numbers."""
    return torch.tensor([[value, 0.0] for value in confidences])


@pytest.mark.parametrize(
    ("num_exits", "expected"),
    [(1, [32]), (2, [12, 20]), (3, [6, 10, 16]), (4, [3, 5, 8, 16])],
)
def test_counts_match_the_published_ones_for_a_batch_of_32(num_exits: int, expected: list[int]) -> None:
    logits = list(torch.randn(num_exits, 32, 10, generator=torch.Generator().manual_seed(0)))
    assert [len(index) for index in assign_exits(logits)] == expected


def test_fractions_grow_by_p_over_20() -> None:
    torch.testing.assert_close(exit_fractions(3), torch.tensor([4, 6, 9], dtype=torch.float64) / 19)
    torch.testing.assert_close(exit_fractions(4, p=20.0), torch.full((4,), 0.25, dtype=torch.float64))


def test_counts_do_not_lose_a_sample_by_rounding() -> None:
    # 100 * 0.29 is 28.999999999999996 in floating point.
    assert exit_counts(100, torch.tensor([0.29, 0.71], dtype=torch.float64)) == [29, 71]


def test_most_confident_samples_leave_first_and_only_once() -> None:
    # n = 5, E = 2: floor(5 * 0.4) = 2 leave at exit 1.
    first = two_class([1.0, 5.0, 2.0, 4.0, 3.0])
    second = two_class([9.0, 0.0, 9.0, 0.0, 9.0])
    assert [index.tolist() for index in assign_exits([first, second])] == [[1, 3], [0, 2, 4]]


def test_middle_exit_uses_its_own_confidence() -> None:
    # n = 7, E = 3: floor(7 * 4/19) = 1, floor(7 * 6/19) = 2, the rest 4.
    first = two_class([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    second = two_class([9.0, 1.0, 2.0, 8.0, 3.0, 7.0, 4.0])
    assigned = assign_exits([first, second, torch.zeros(7, 2)])
    assert [index.tolist() for index in assigned] == [[0], [3, 5], [1, 2, 4, 6]]


def test_ties_are_broken_by_batch_order() -> None:
    assigned = assign_exits([torch.zeros(32, 3)] * 3)
    assert [index.tolist() for index in assigned] == [
        list(range(6)),
        list(range(6, 16)),
        list(range(16, 32)),
    ]


def test_empty_exits_keep_their_position() -> None:
    assigned = assign_exits([torch.randn(2, 3, generator=torch.Generator().manual_seed(1))] * 4)
    assert [index.tolist() for index in assigned] == [[], [], [], [0, 1]]
    assert all(index.dtype == torch.int64 for index in assigned)


def test_every_sample_is_assigned_once() -> None:
    logits = list(torch.randn(5, 101, 7, generator=torch.Generator().manual_seed(2)))
    assert sorted(torch.cat(assign_exits(logits, p=13.0)).tolist()) == list(range(101))

import numpy as np

from common.data.raw import RawSplit, first, split_off_test


def _split(labels: list[int]) -> RawSplit:
    return RawSplit([bytes([i]) for i in range(len(labels))], np.array(labels))


def test_fifth_of_each_class_is_for_testing() -> None:
    train, test = split_off_test(_split([0] * 10 + [1] * 20 + [2]))
    assert np.bincount(test.labels, minlength=3).tolist() == [2, 4, 0]
    assert np.bincount(train.labels, minlength=3).tolist() == [8, 16, 1]
    assert sorted([*train.samples, *test.samples]) == [bytes([i]) for i in range(31)]


def test_test_split_is_always_the_same() -> None:
    once, again = split_off_test(_split([0, 1] * 20))[1], split_off_test(_split([0, 1] * 20))[1]
    assert once.samples == again.samples
    # Frozen, so that results of different versions can be compared.
    assert [image[0] for image in once.samples] == [1, 2, 4, 8, 29, 31, 36, 37]


def test_limit_takes_the_first_samples() -> None:
    split = _split([1, 0, 1, 0, 2])
    assert first(split, 0) is split
    assert first(split, 9) is split
    assert first(split, 2).samples == [b"\x00", b"\x01"]


def test_limit_reads_a_sorted_set_across_its_classes() -> None:
    split = _split([0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert first(split, 4).samples == [bytes([i]) for i in (0, 1, 3, 6)]


def test_limit_reads_a_set_stored_class_by_class_across_its_classes_in_any_order() -> None:
    split = _split([2, 2, 2, 0, 0, 0, 0, 1])
    assert first(split, 5).samples == [bytes([i]) for i in (0, 1, 3, 4, 7)]


def test_natural_values_follow_their_samples() -> None:
    split = RawSplit([b"a", b"b", b"c"], np.array([0, 1, 0]), np.array(["x", "y", "z"]))
    part = split.take(np.array([2, 0]))
    assert part.natural is not None
    assert (part.samples, part.labels.tolist(), part.natural.tolist()) == ([b"c", b"a"], [0, 0], ["z", "x"])

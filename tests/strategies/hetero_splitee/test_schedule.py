from collections import Counter

from strategies.hetero_splitee.schedule import order, turns


def test_order_is_by_id_or_drawn_for_each_round():
    assert order({2, 0, 1}, "fixed", 7, 1) == [0, 1, 2]
    drawn = [tuple(order(range(4), "shuffled", 7, round_)) for round_ in range(400)]
    assert drawn == [tuple(order([3, 1, 0, 2], "shuffled", 7, round_)) for round_ in range(400)]
    assert {tuple(sorted(one)) for one in drawn} == {(0, 1, 2, 3)}
    assert len(set(drawn)) == 24
    assert all(70 < number < 130 for number in Counter(one[0] for one in drawn).values())
    assert drawn != [tuple(order(range(4), "shuffled", 8, round_)) for round_ in range(400)]
    # an absent client does not change the others' order
    assert [tuple(c for c in one if c != 2) for one in drawn] == [
        tuple(order([0, 1, 3], "shuffled", 7, round_)) for round_ in range(400)
    ]


def test_turns_by_batch_skip_finished_clients():
    assert list(turns({2: 1, 0: 3, 1: 2}, 1, "batch")) == [(2, 0, 1), (0, 1), (0,)]
    assert list(turns({0: 1, 1: 2}, 2, "batch")) == [(0, 1), (0, 1), (1,), (1,)]


def test_turns_by_epoch_take_one_client_after_another():
    assert list(turns({1: 1, 0: 2}, 2, "epoch")) == [(1,), (0,), (0,), (1,), (0,), (0,)]


def test_turns_without_batches_are_empty():
    for granularity in ("batch", "epoch"):
        assert list(turns({}, 2, granularity)) == []
        assert list(turns({0: 0, 1: 3}, 0, granularity)) == []
        assert list(turns({0: 0, 1: 1}, 1, granularity)) == [(1,)]

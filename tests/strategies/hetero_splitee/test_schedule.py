from strategies.hetero_splitee.schedule import turns


def test_turns_by_batch_skip_finished_clients():
    assert list(turns({2: 1, 0: 3, 1: 2}, 1, "batch")) == [(0, 1, 2), (0, 1), (0,)]
    assert list(turns({0: 1, 1: 2}, 2, "batch")) == [(0, 1), (0, 1), (1,), (1,)]


def test_turns_by_epoch_take_one_client_after_another():
    assert list(turns({1: 1, 0: 2}, 2, "epoch")) == [(0,), (0,), (1,), (0,), (0,), (1,)]


def test_turns_without_batches_are_empty():
    for granularity in ("batch", "epoch"):
        assert list(turns({}, 2, granularity)) == []
        assert list(turns({0: 0, 1: 3}, 0, granularity)) == []
        assert list(turns({0: 0, 1: 1}, 1, granularity)) == [(1,)]

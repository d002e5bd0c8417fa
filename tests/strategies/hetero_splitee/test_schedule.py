from strategies.hetero_splitee.schedule import turns


def test_clients_take_turns_batch_by_batch_and_drop_out_when_done():
    assert list(turns({2: 1, 0: 3, 1: 2}, 1, "batch")) == [(0, 1, 2), (0, 1), (0,)]
    assert list(turns({0: 1, 1: 2}, 2, "batch")) == [(0, 1), (0, 1), (1,), (1,)]


def test_clients_take_turns_epoch_by_epoch():
    assert list(turns({1: 1, 0: 2}, 2, "epoch")) == [(0,), (0,), (1,), (0,), (0,), (1,)]


def test_nobody_has_anything():
    for granularity in ("batch", "epoch"):
        assert list(turns({}, 2, granularity)) == []
        assert list(turns({0: 0, 1: 3}, 0, granularity)) == []
        assert list(turns({0: 0, 1: 1}, 1, granularity)) == [(1,)]

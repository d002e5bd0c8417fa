import copy

import pytest
import torch

from common.errors import UserError
from strategies.hetero_splitee.averaging import Averaging
from strategies.hetero_splitee.learner import MOMENTUM, Sgd, device_part, server_part
from strategies.hetero_splitee.settings import SplitEESettings

CPU, SGD = torch.device("cpu"), Sgd(0.1, 0.9, 0.01)


def make(network, store, **changes) -> Averaging:
    settings = SplitEESettings(**{"mode": "averaging", "aggregate_scope": "server", **changes})
    return Averaging(network, settings, CPU, store)


def train(server, round_, cuts, batch, network, finished=None):
    server.open_round(round_, cuts, SGD)
    server.step_many({client: batch(network, cut, 10 * round_ + client) for client, cut in cuts.items()})
    server.close_round(dict.fromkeys(cuts if finished is None else finished, 6), {})


def fill(server, values, counters):
    """Set each copy's weights and statistics to one number, and its counters to another."""
    for client, value in values.items():
        for tensor in server.copies[client].network.state_dict().values():
            tensor.fill_(value if tensor.is_floating_point() else counters[client])


def sflv1_round(average, network, cut, batches, samples, buffers):
    """SplitFed V1's server (Thapa et al., AAAI 2022): copy, train each copy, average by samples."""
    copies = {}
    for client in batches:
        model = copy.deepcopy(server_part(network, cut))
        model.load_state_dict(average)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        optimizer.load_state_dict(buffers.get(client, optimizer.state_dict()))
        for features, y in batches[client]:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(features)[-1], y).backward()
            optimizer.step()
        copies[client], buffers[client] = model.state_dict(), optimizer.state_dict()
    total = sum(samples.values())
    return {
        key: sum(samples[c] / total * copies[c][key] for c in copies)
        if value.is_floating_point()
        else max(copies[c][key] for c in copies)
        for key, value in average.items()
    }


def test_averaging_with_equal_cuts_equals_sflv1(slim, batch, store):
    server, samples, buffers = make(slim, store), {0: 10, 1: 30, 2: 20}, {}
    average = {key: value.clone() for key, value in server_part(slim, 2).state_dict().items()}
    for round_ in (1, 2):
        batches = {c: [batch(slim, 2, 100 * round_ + 10 * c + b) for b in range(3)] for c in samples}
        server.open_round(round_, dict.fromkeys(samples, 2), SGD)
        for b in range(3):
            server.step_many({c: batches[c][b] for c in samples})
        server.close_round(samples, {})
        average = sflv1_round(average, slim, 2, batches, samples, buffers)
        for key, value in average.items():
            assert torch.allclose(server.model()[key], value, rtol=1e-5, atol=1e-6), (round_, key)


def test_each_layer_is_averaged_over_the_copies_that_hold_it(slim, store):
    server = make(slim, store)
    seed = server.model()
    server.open_round(1, {0: 1, 1: 2, 2: 4}, SGD)
    fill(server, {0: 1.0, 1: 4.0, 2: 10.0}, {0: 7, 1: 9, 2: 8})
    server.close_round({0: 10, 1: 20, 2: 30}, {})
    # unit 1: client 0 alone; units 2 and 3: (10*1 + 20*4)/30 = 3; unit 4 and exit 5: (10 + 80 + 300)/60 = 6.5
    floats, counters = {1: 1.0, 2: 3.0, 3: 3.0, 4: 6.5, 5: 6.5}, {1: 7, 2: 9, 3: 9, 4: 9}
    for key, value in server.model().items():
        index = int(key.split(".")[1])
        if key.startswith("units.0."):
            assert torch.equal(value, seed[key]), key
        elif value.is_floating_point():
            assert torch.equal(value, torch.full_like(value, floats[index])), key
        else:
            assert value == counters[index], key


def test_scope_global_averages_all_layers_and_exits_within_a_cut(slim, store):
    server = make(slim, store, aggregate_scope="global")
    cuts, samples = {0: 1, 1: 2, 2: 4}, {0: 10, 1: 20, 2: 30}
    server.open_round(1, cuts, SGD)
    fill(server, {0: 1.0, 1: 4.0, 2: 10.0}, {0: 7, 1: 9, 2: 8})
    devices = {c: device_part(slim, cut).state_dict() for c, cut in cuts.items()}
    for client, value in {0: 100.0, 1: 40.0, 2: 20.0}.items():
        for tensor in devices[client].values():
            tensor.fill_(value if tensor.is_floating_point() else 50 + client)
    server.close_round(samples, devices)
    floats = {
        0: (10 * 100 + 20 * 40 + 30 * 20) / 60,  # all three devices: 40
        1: (10 * 1 + 20 * 40 + 30 * 20) / 60,  # client 0's copy, the others' devices: 23.5
        2: (10 * 1 + 20 * 4 + 30 * 20) / 60,  # 11.5
        3: (10 * 1 + 20 * 4 + 30 * 20) / 60,
        4: (10 * 1 + 20 * 4 + 30 * 10) / 60,  # three copies: 6.5
        5: (10 * 1 + 20 * 4 + 30 * 10) / 60,  # the last exit
    }
    exits = {1: 100.0, 2: 40.0, 4: 20.0, 5: floats[5]}  # one device each at the cuts; the last is the server's
    average = server.model()
    assert {int(key.split(".")[1]) for key in average if key.startswith("exits.")} == exits.keys()
    for key, value in average.items():
        index = int(key.split(".")[1])
        if key.startswith("exits."):
            assert torch.allclose(value, torch.full_like(value, exits[index])), key
        elif value.is_floating_point():
            assert torch.allclose(value, torch.full_like(value, floats[index])), key
        else:
            assert value == (9 if index == 4 else 52), key


def test_devices_exits_are_averaged_within_their_cut_by_samples(slim, store):
    server, samples = make(slim, store, aggregate_scope="global"), {0: 10, 1: 30, 2: 20}
    server.open_round(1, {0: 2, 1: 2, 2: 3}, SGD)
    devices = {c: device_part(slim, cut).state_dict() for c, cut in {0: 2, 1: 2, 2: 3}.items()}
    for client, value in {0: 1.0, 1: 5.0, 2: 9.0}.items():
        devices[client][f"exits.{3 if client == 2 else 2}.linear.bias"].fill_(value)
    server.close_round(samples, devices)
    assert server.model()["exits.2.linear.bias"].tolist() == [4.0] * 3  # (10 * 1 + 30 * 5) / 40
    assert server.model()["exits.3.linear.bias"].tolist() == [9.0] * 3


def filled_twice(server):
    """Two rounds of clients 0 and 1 at cut 2 and client 2 at cut 3; client 1 rests in the second."""
    server.open_round(1, {0: 2, 1: 2, 2: 3}, SGD)
    fill(server, {0: 1.0, 1: 5.0, 2: 9.0}, {0: 7, 1: 9, 2: 8})
    server.close_round({0: 10, 1: 30, 2: 20}, {})
    server.open_round(2, {0: 2, 2: 3}, SGD)
    fill(server, {0: 3.0, 2: 6.0}, {0: 17, 2: 18})
    server.close_round({0: 10, 2: 20}, {})
    return server


# statistics of unit 3 for clients 0, 1 (at cut 2) and 2 (at cut 3), for a new client at cuts 2, 3 and 1, where none is
STATISTICS = {
    "own": ([3.0, 5.0, 6.0], [3.0, 6.0, 5.0]),
    "cut": ([3.0, 3.0, 6.0], [3.0, 6.0, 5.0]),  # round 2: client 0 alone, client 2 alone
    "shared": ([5.0, 5.0, 5.0], [5.0, 5.0, 5.0]),  # (10 * 3 + 20 * 6) / 30
}


@pytest.mark.parametrize("how", STATISTICS)
def test_known_clients_keep_their_statistics_through_an_average(slim, store, how):
    server, mean, variance = filled_twice(make(slim, store, statistics=how)), "units.3.bn1.running_mean", "running_var"
    own, new = STATISTICS[how]

    def found(server):
        asked = [(0, 2), (1, 2), (2, 3), (7, 2), (7, 3), (7, 1)]
        return [server._read(client, cut, prune=False).state_dict() for client, cut in asked]

    for again in (server, make(slim, store, statistics=how)):
        if again is not server:
            again.load_state_dict(*server.state_dict())
        for key in (mean, mean.replace("running_mean", variance)):
            assert [float(state[key][0]) for state in found(again)] == own + new
        # weights are the average's, whatever the statistics
        assert {float(state["units.3.bn1.weight"][0]) for state in found(again)} == {5.0}
    if how == "own":
        counters = [int(state["units.3.bn1.num_batches_tracked"]) for state in found(server)[:3]]
        assert counters == [17, 9, 18]


@pytest.mark.parametrize("how", ["own", "cut", "shared"])
def test_statistics_follow_copies_between_averages(slim, batch, store, how):
    """With period 2 a copy continues from its own statistics in any case, and a resumed server from the same."""
    server = make(slim, store, period=2, statistics=how)
    train(server, 1, {0: 2, 1: 2}, batch, slim)
    resumed = make(slim, store, period=2, statistics=how)
    resumed.load_state_dict(*server.state_dict())
    for one in (server, resumed):
        one.open_round(2, {0: 2, 1: 2}, SGD)
        assert [int(one.copies[c].network.units["3"].bn1.num_batches_tracked) for c in (0, 1)] == [1, 1]
    means = [server.copies[c].network.units["3"].bn1.running_mean for c in (0, 1)]
    assert not torch.equal(*means)
    assert all(torch.equal(means[c], resumed.copies[c].network.units["3"].bn1.running_mean) for c in (0, 1))


def test_scope_global_needs_the_layers_of_the_device(slim, store):
    server = make(slim, store, aggregate_scope="global")
    server.open_round(1, {0: 2}, SGD)
    with pytest.raises(ValueError, match="client 0: its device's layers are not those before its cut 2"):
        server.close_round({0: 5}, {0: device_part(slim, 1).state_dict()})


def test_copies_differ_between_averages_and_momenta_always(slim, batch, store):
    server, seed = make(slim, store, period=2), slim.state_dict()
    train(server, 1, {0: 2, 1: 2}, batch, slim)
    assert all(torch.equal(value, seed[key]) for key, value in server.model().items())
    server.open_round(2, {0: 2, 1: 2}, SGD)
    key = "units.4.conv1.weight"
    own = [server.copies[c].network.state_dict()[key] for c in (0, 1)]
    assert not torch.equal(own[0], own[1])
    server.close_round({0: 6, 1: 6}, {})
    server.open_round(3, {0: 2, 1: 2}, SGD)
    shared = [server.copies[c].network.state_dict()[key] for c in (0, 1)]
    momenta = [server.copies[c].momenta()[key] for c in (0, 1)]
    assert torch.equal(shared[0], shared[1])
    assert torch.allclose(shared[0], (own[0] + own[1]) / 2)
    assert not torch.equal(momenta[0], momenta[1])
    assert momenta[0].abs().max() > 0


def test_resting_client_counts_once_and_returns_to_the_average(slim, store):
    server = make(slim, store, period=2)
    server.open_round(1, {0: 2, 1: 2}, SGD)
    fill(server, {0: 1.0, 1: 2.0}, {0: 1, 1: 1})
    server.close_round({0: 10, 1: 10}, {})
    server.open_round(2, {1: 2}, SGD)
    fill(server, {1: 5.0}, {1: 2})
    server.close_round({1: 10}, {})
    key = "units.3.conv1.weight"
    assert server.model()[key].unique().item() == 3.0  # (1 + 5) / 2
    for round_ in (3, 4):
        server.open_round(round_, {1: 2}, SGD)
        server.close_round({1: 10}, {})
    assert server.model()[key].unique().item() == 3.0  # client 0 has not trained since
    server.open_round(5, {0: 2}, SGD)
    assert server.copies[0].network.state_dict()[key].unique().item() == 3.0


def test_unfinished_client_changes_nothing(slim, batch, tmp_path, store):
    both, alone = make(slim, store), make(slim, type(store)(tmp_path, "alone"))
    train(both, 1, {0: 2, 1: 2}, batch, slim, finished=[1])
    assert list(both.kept) == [1]
    train(alone, 1, {1: 2}, batch, slim)
    assert all(torch.equal(value, alone.model()[key]) for key, value in both.model().items())
    both.open_round(2, {0: 2}, SGD)
    assert both.copies[0].momentum.abs().max() == 0


@pytest.mark.parametrize(("before", "after"), [(3, 1), (1, 3), (4, 2)])
def test_new_cut_keeps_the_layers_of_the_copy(slim, batch, store, before, after):
    server = make(slim, store, period=3)
    server.open_round(1, {0: before, 1: 1}, SGD)
    server.step(0, *batch(slim, before))
    server.close_round({0: 6, 1: 6}, {})
    own = {k: v.clone() for k, v in server._read(0, before).state_dict().items()}
    for key in server.average:
        if server.average[key].is_floating_point():
            server.average[key] += 1  # makes layers from the average recognisable
    server.open_round(2, {0: after}, SGD)
    state = server.copies[0].state_dict()
    assert server.copies[0].network.start == after
    for key, value in state.items():
        if key in own:
            assert torch.equal(value, own[key]), key
        elif key.startswith(MOMENTUM):
            assert value.abs().max() == 0, key
        else:
            assert torch.equal(value, server.average[key]), key
    assert any(key.startswith("units.4") and key in own for key in state)


def test_only_copies_of_the_round_are_in_memory(slim, batch, store):
    server = make(slim, store)
    train(server, 1, {c: 1 + c % 4 for c in range(6)}, batch, slim)
    assert list(server.kept) == list(range(6))
    assert server.copies == {}
    server.open_round(2, {4: 1, 1: 2}, SGD)
    assert list(server.copies) == [1, 4]
    assert sorted(path.name for path in store.folder.iterdir()) == [f"client-{c:06d}" for c in range(6)]
    for _ in range(2):  # evaluation holds one further copy at a time
        for client in (0, 1, 2):
            server.logits(client, 2, batch(slim, 2)[0])
    assert list(server.copies) == [1, 4]
    assert server._guest[0] == (2, 2)


def test_weights_are_stored_only_between_averages(slim, batch, store):
    server = make(slim, store, period=2)
    train(server, 1, {0: 2}, batch, slim)
    assert set(store.load(0, 1).tensors) == set(server._read(0, 2).state_dict())
    train(server, 2, {0: 2}, batch, slim)
    assert all(key.startswith(MOMENTUM) for key in store.load(0, 2).tensors)


def test_resumed_averaging_continues_bit_for_bit(slim, batch, store):
    def go_on(server, round_):
        train(server, round_, {0: 1, 1: 2, 3: 2}, batch, slim)

    server = make(slim, store, period=2)
    go_on(server, 1)
    checkpoint = server.state_dict()
    train(server, 2, {0: 2, 2: 3}, batch, slim)  # a killed round: its copies are written, but it does not count
    server = make(slim, store, period=2)
    server.load_state_dict(*checkpoint)
    for round_ in (2, 3):
        go_on(server, round_)
    whole = make(slim, type(store)(store.folder.parent, "whole"), period=2)
    for round_ in (1, 2, 3):
        go_on(whole, round_)
    assert server.state_dict()[1] == whole.state_dict()[1]
    for client, cut in {0: 1, 1: 2, 2: 3, 3: 2}.items():
        resumed, expected = (s._read(client, cut).state_dict() for s in (server, whole))
        assert all(torch.equal(value, resumed[key]) for key, value in expected.items())


def test_open_round_fails_without_the_stored_copy(slim, batch, store):
    server = make(slim, store)
    train(server, 1, {0: 2}, batch, slim)
    next(store.folder.glob("client-000000/*")).unlink()
    with pytest.raises(UserError, match="client 0: its state of round 1"):
        server.open_round(2, {0: 2}, SGD)


def test_logits_come_from_the_copy_and_then_the_average(slim, batch, store):
    server, (features, y) = make(slim, store), batch(slim, 2)
    server.open_round(1, {0: 2, 1: 2}, SGD)
    before = server.logits(5, 2, features)
    server.step(0, features, y)
    during = server.logits(0, 2, features)
    assert torch.equal(server.logits(1, 2, features), before)
    assert not torch.equal(during, before)
    server.close_round({0: 6, 1: 6}, {})
    after = [server.logits(client, 2, features) for client in (5, 0, 1)]  # 5 was evaluated before
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], after[2])
    model = server_part(slim, 2)
    model.load_state_dict({key: value for key, value in server.model().items() if key in model.state_dict()})
    with torch.no_grad():
        assert torch.equal(model.eval()(features)[-1], after[0])
    assert not any(torch.equal(after[0], other) for other in (before, during))

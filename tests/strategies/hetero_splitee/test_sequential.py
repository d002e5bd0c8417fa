import copy
from itertools import pairwise

import pytest
import torch

from strategies.hetero_splitee.learner import MOMENTUM, Sgd, server_part
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import CLIENTS, STATISTICS, statistics_of

CPU, SGD = torch.device("cpu"), Sgd(0.1, 0.9, 0.01)
SHARED, OWN = (SplitEESettings(statistics=how) for how in ("shared", "own"))
CUT = SplitEESettings(statistics="cut")


def snapshot(server):
    return server.state_dict()[0]


def statistic(key: str) -> bool:
    return "running_" in key or "num_batches" in key


def trained(slim, batch, settings, cuts=(1, 3, 2), rounds=2):
    """Return a server after some rounds of one client per cut; the deeper the cut, the brighter its features."""
    server = Sequential(slim, settings, CPU)
    for round_ in range(1, rounds + 1):
        server.open_round(round_, dict(enumerate(cuts)), SGD)
        batches = {client: batch(slim, cut, 10 * round_ + client) for client, cut in enumerate(cuts)}
        server.step_many({client: (x + cuts[client], y) for client, (x, y) in batches.items()})
        server.close_round(dict.fromkeys(batches, 6), {})
    return server


def unit(key: str) -> int:
    kind, number, *_ = key.removeprefix(MOMENTUM).split(".")
    return int(number) if kind == "units" else 99


def test_step_keeps_layers_before_the_cut_bit_for_bit(slim, batch):
    server = Sequential(slim, SHARED, CPU)
    server.open_round(1, {0: 1, 1: 3}, SGD)
    server.step(0, *batch(slim, 1))  # gives every layer a momentum, which a wrong step would apply
    before = snapshot(server)
    server.step(1, *batch(slim, 3))
    after = snapshot(server)
    assert any(key.startswith(MOMENTUM) and before[key].abs().max() > 0 for key in before if unit(key) < 3)
    for key, value in after.items():
        assert torch.equal(value, before[key]) == (unit(key) < 3), key


def test_parts_share_one_model_that_is_a_copy(slim, batch):
    before = {key: value.clone() for key, value in slim.state_dict().items()}
    server = Sequential(slim, CUT, CPU)
    server.open_round(1, {0: 1, 1: 2, 2: 4}, SGD)
    server.step_many({client: batch(slim, cut, client) for client, cut in {2: 4, 0: 1, 1: 2}.items()})
    assert all(torch.equal(value, before[key]) for key, value in slim.state_dict().items())
    whole = dict(server.learner.network.named_parameters())
    for part, _ in server.parts.values():
        assert all(parameter is whole[key] for key, parameter in part.named_parameters())


def test_step_many_serves_clients_one_after_another(slim, batch):
    cuts = {0: 2, 1: 3, 2: 1}
    batches = {client: batch(slim, cut, client) for client, cut in cuts.items()}
    server = Sequential(slim, SHARED, CPU)
    server.open_round(1, cuts, SGD)
    results = server.step_many({client: batches[client] for client in (2, 0, 1)})
    server.close_round(dict.fromkeys(cuts, 6), {})
    # expected: one model, one optimiser of torch, gradients of skipped layers None
    model = copy.deepcopy(server_part(slim, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for client in (2, 0, 1):
        optimizer.zero_grad(set_to_none=True)
        features, y = batches[client]
        cut = cuts[client]
        loss = torch.nn.functional.cross_entropy(server_part(model, cut)(features)[-1], y)
        loss.backward()
        optimizer.step()
        assert float(results[client].loss) == pytest.approx(loss.item(), rel=1e-6)
    assert list(results) == [2, 0, 1]
    for key, value in model.state_dict().items():
        assert torch.allclose(server.model()[key], value, atol=1e-7), key


def test_step_returns_a_gradient_only_if_configured(lenet, batch):
    for gradient in ("stop", "return"):
        server = Sequential(lenet, SplitEESettings(gradient=gradient), CPU)
        server.open_round(1, {0: 1}, SGD)
        features, y = batch(lenet, 1)
        result = server.step(0, features, y)
        assert (result.gradient is not None) == (gradient == "return")
        if result.gradient is not None:
            assert result.gradient.shape == features.shape


def test_logits_equal_those_of_the_model_at_any_cut(slim, batch):
    server = Sequential(slim, CUT, CPU)
    server.open_round(1, {0: 1}, SGD)
    server.step(0, *batch(slim, 1))
    server.close_round({0: 6}, {})
    features, _ = batch(slim, 1, seed=5)
    model = server_part(slim, 1)
    model.load_state_dict(server.model())
    with torch.no_grad():
        expected = model.eval()(features)[-1]
        deeper = model.features_at(features, 3)
    assert torch.equal(server.logits(0, 1, features), expected)
    assert torch.equal(server.logits(7, 3, deeper), expected)


def test_each_cut_has_statistics_of_its_own_batches(slim, batch):
    cuts = (1, 3, 2)
    server = Sequential(slim, CUT, CPU)
    inputs = {cut: list[torch.Tensor]() for cut in cuts}
    server.open_round(1, dict(enumerate(cuts)), SGD)
    for client, cut in enumerate(cuts):
        norm = server._part(client)[0].units["3"].bn1
        norm.register_forward_pre_hook(lambda module, args, seen=inputs[cut]: seen.append(args[0].detach()))
    for turn in range(3):
        for client, cut in enumerate(cuts):
            features, y = batch(slim, cut, 10 * turn + client)
            server.step(client, features + cut, y)
    server.close_round(dict.fromkeys(range(3), 18), {})
    for cut, own in server.statistics().cuts.items():
        # expected: one running average over this cut's inputs, independent of the other cuts' batches
        mean, variance = torch.zeros(8), torch.ones(8)
        for x in inputs[cut]:
            mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
            variance = 0.9 * variance + 0.1 * x.transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(own["units.3.bn1.running_mean"], mean)
        torch.testing.assert_close(own["units.3.bn1.running_var"], variance)
        assert own["units.3.bn1.num_batches_tracked"] == 3
    means = [own["units.3.bn1.running_mean"] for own in server.statistics().cuts.values()]
    assert all((one - other).abs().max() > 0.05 for one, other in pairwise(means))


def test_sharing_statistics_does_not_change_the_weights(slim, batch):
    own, shared = (trained(slim, batch, settings) for settings in (CUT, SHARED))
    one, two = (snapshot(server) for server in (own, shared))
    assert two.keys() == {key for key in one if not key.startswith(STATISTICS)}
    assert all(torch.equal(one[key], two[key]) for key in two if not statistic(key))
    key = "units.3.bn1.num_batches_tracked"
    assert shared.model()[key] == 6
    assert [own.statistics().cuts[cut][key] for cut in (1, 2, 3)] == [2, 2, 2]
    features, _ = batch(slim, 3)
    assert not torch.equal(own.logits(0, 3, features), shared.logits(0, 3, features))


def test_logits_use_statistics_of_the_cut_or_of_the_model(slim, batch):
    server = trained(slim, batch, CUT, cuts=(3, 1))
    state, own = server.model(), server.statistics().cuts
    assert sorted(own) == [1, 3]
    for cut, known in ((1, 1), (3, 3), (2, 1), (4, 1)):
        features, _ = batch(slim, cut, seed=5)
        model = server_part(slim, 1)
        model.load_state_dict(state | own[known])
        with torch.no_grad():
            expected = server_part(model.eval(), cut)(features)[-1]
        assert torch.equal(server.logits(9, cut, features), expected), cut
    assert sorted(server.statistics().cuts) == [1, 3]  # evaluation adds no statistics
    assert all(torch.equal(state[key], value) for key, value in own[1].items())


def test_new_cut_starts_with_the_initial_statistics(slim, batch):
    server = trained(slim, batch, CUT, cuts=(1,))
    features, y = batch(slim, 2)
    with torch.no_grad():
        mean = server.learner.network.units["2"].conv1(features).mean((0, 2, 3))
    server.open_round(3, {0: 2}, SGD)
    server.step(0, features, y)
    server.close_round({0: 6}, {})
    own = server.statistics().cuts
    assert [own[cut]["units.2.bn1.num_batches_tracked"] for cut in (1, 2)] == [2, 1]
    torch.testing.assert_close(own[2]["units.2.bn1.running_mean"], 0.1 * mean)


@pytest.mark.parametrize("settings", [CUT, SHARED, OWN], ids=["cut", "shared", "own"])
def test_resumed_sequential_continues_bit_for_bit(slim, batch, settings):
    one, two = (Sequential(slim, settings, CPU) for _ in range(2))
    one.open_round(1, {0: 1, 1: 3}, SGD)
    one.step_many({0: batch(slim, 1), 1: batch(slim, 3)})
    one.close_round({0: 6, 1: 6}, {})
    two.load_state_dict(*one.state_dict())
    features, _ = batch(slim, 3)
    assert torch.equal(one.logits(1, 3, features), two.logits(1, 3, features))
    for server in (one, two):
        server.open_round(2, {0: 2, 1: 3}, SGD)
        server.step_many({0: batch(slim, 2, seed=8), 1: batch(slim, 3, seed=9)})
        server.close_round({0: 6, 1: 6}, {})
    assert snapshot(one).keys() == snapshot(two).keys()
    assert all(torch.equal(value, snapshot(two)[key]) for key, value in snapshot(one).items())
    running = statistics_of(snapshot(two))
    assert sorted(running.cuts) == ([1, 2, 3] if settings is not SHARED else [])
    assert {client: cut for client, (cut, _) in running.clients.items()} == ({0: 2, 1: 3} if settings is OWN else {})


def test_each_client_has_statistics_of_its_own_batches(slim, batch):
    """Clients 0 and 1 have one cut: with "own" neither's batches touch the other's statistics."""
    key, server = "units.3.bn1.running_mean", Sequential(slim, OWN, CPU)
    cuts, inputs = {0: 2, 1: 2}, {0: list[torch.Tensor](), 1: list[torch.Tensor]()}
    for round_ in (1, 2):
        server.open_round(round_, cuts, SGD)
        for client in cuts:
            norm = server._part(client)[0].units["3"].bn1
            norm.register_forward_pre_hook(lambda module, args, seen=inputs[client]: seen.append(args[0].detach()))
            features, y = batch(slim, 2, 10 * round_ + client)
            server.step(client, features + client, y)
        server.close_round({0: 6, 1: 18}, {})
    means = {}
    for client, seen in inputs.items():
        means[client] = torch.zeros(8)
        for x in seen:
            means[client] = 0.9 * means[client] + 0.1 * x.mean((0, 2, 3))
        torch.testing.assert_close(server.statistics().of(client, 2)[key], means[client])
        assert server.statistics().of(client, 2)["units.3.bn1.num_batches_tracked"] == 2
    assert (means[0] - means[1]).abs().max() > 0.03
    # a new client has the mean of its cut's clients, weighted by samples
    torch.testing.assert_close(server.statistics().of(7, 2)[key], 0.25 * means[0] + 0.75 * means[1])
    server.open_round(3, {1: 2, 7: 2}, SGD)
    assert torch.equal(server._part(7)[0].state_dict()[key], server.statistics().of(7, 2)[key])
    assert torch.equal(server._part(1)[0].state_dict()[key], server.statistics().of(1, 2)[key])


def test_unfinished_client_keeps_its_earlier_statistics(slim, batch):
    server = Sequential(slim, OWN, CPU)
    for round_, finished in ((1, {0: 6, 1: 6}), (2, {1: 6})):
        server.open_round(round_, {0: 2, 1: 2}, SGD)
        server.step_many({client: batch(slim, 2, 10 * round_ + client) for client in (0, 1)})
        server.close_round(finished, {})
    key = "units.3.bn1.num_batches_tracked"
    assert [int(server.statistics().of(client, 2)[key]) for client in (0, 1)] == [1, 2]


def test_own_statistics_do_not_change_the_weights(slim, batch):
    own, shared = (trained(slim, batch, settings) for settings in (OWN, SHARED))
    one, two = (snapshot(server) for server in (own, shared))
    assert two.keys() == {key for key in one if not key.startswith((STATISTICS, CLIENTS))}
    assert all(torch.equal(one[key], two[key]) for key in two if not statistic(key))

import copy
from itertools import pairwise

import pytest
import torch

from strategies.hetero_splitee.learner import MOMENTUM, Sgd, server_part
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.settings import SplitEESettings
from strategies.hetero_splitee.statistics import STATISTICS, statistics_by_cut

CPU, SGD = torch.device("cpu"), Sgd(0.1, 0.9, 0.01)
SHARED = SplitEESettings(statistics="shared")


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
    server = Sequential(slim, SplitEESettings(), CPU)
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
    # expected: one model, one optimiser of torch, gradients of skipped layers None
    model = copy.deepcopy(server_part(slim, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for client, cut in cuts.items():
        optimizer.zero_grad(set_to_none=True)
        features, y = batches[client]
        loss = torch.nn.functional.cross_entropy(server_part(model, cut)(features)[-1], y)
        loss.backward()
        optimizer.step()
        assert float(results[client].loss) == pytest.approx(loss.item(), rel=1e-6)
    assert list(results) == [0, 1, 2]
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
    server = Sequential(slim, SplitEESettings(), CPU)
    server.open_round(1, {0: 1}, SGD)
    server.step(0, *batch(slim, 1))
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
    server = Sequential(slim, SplitEESettings(), CPU)
    inputs = {cut: list[torch.Tensor]() for cut in cuts}
    for cut, seen in inputs.items():
        norm = server._part(cut)[0].units["3"].bn1
        norm.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0].detach()))
    server.open_round(1, dict(enumerate(cuts)), SGD)
    for turn in range(3):
        for client, cut in enumerate(cuts):
            features, y = batch(slim, cut, 10 * turn + client)
            server.step(client, features + cut, y)
    for cut, own in server.statistics().items():
        # expected: one running average over this cut's inputs, independent of the other cuts' batches
        mean, variance = torch.zeros(8), torch.ones(8)
        for x in inputs[cut]:
            mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
            variance = 0.9 * variance + 0.1 * x.transpose(0, 1).flatten(1).var(1)
        torch.testing.assert_close(own["units.3.bn1.running_mean"], mean)
        torch.testing.assert_close(own["units.3.bn1.running_var"], variance)
        assert own["units.3.bn1.num_batches_tracked"] == 3
    means = [own["units.3.bn1.running_mean"] for own in server.statistics().values()]
    assert all((one - other).abs().max() > 0.05 for one, other in pairwise(means))


def test_sharing_statistics_does_not_change_the_weights(slim, batch):
    own, shared = (trained(slim, batch, settings) for settings in (SplitEESettings(), SHARED))
    one, two = (snapshot(server) for server in (own, shared))
    assert two.keys() == {key for key in one if not key.startswith(STATISTICS)}
    assert all(torch.equal(one[key], two[key]) for key in two if not statistic(key))
    key = "units.3.bn1.num_batches_tracked"
    assert shared.model()[key] == 6
    assert [own.statistics()[cut][key] for cut in (1, 2, 3)] == [2, 2, 2]
    features, _ = batch(slim, 3)
    assert not torch.equal(own.logits(0, 3, features), shared.logits(0, 3, features))


def test_logits_use_statistics_of_the_cut_or_of_the_model(slim, batch):
    server = trained(slim, batch, SplitEESettings(), cuts=(3, 1))
    state, own = server.model(), server.statistics()
    assert sorted(own) == [1, 3]
    for cut, known in ((1, 1), (3, 3), (2, 1), (4, 1)):
        features, _ = batch(slim, cut, seed=5)
        model = server_part(slim, 1)
        model.load_state_dict(state | own[known])
        with torch.no_grad():
            expected = server_part(model.eval(), cut)(features)[-1]
        assert torch.equal(server.logits(9, cut, features), expected), cut
    assert sorted(server.statistics()) == [1, 3]  # evaluation adds no statistics
    assert all(torch.equal(state[key], value) for key, value in own[1].items())


def test_new_cut_starts_with_the_initial_statistics(slim, batch):
    server = trained(slim, batch, SplitEESettings(), cuts=(1,))
    features, y = batch(slim, 2)
    with torch.no_grad():
        mean = server.learner.network.units["2"].conv1(features).mean((0, 2, 3))
    server.open_round(3, {0: 2}, SGD)
    server.step(0, features, y)
    own = server.statistics()
    assert [own[cut]["units.2.bn1.num_batches_tracked"] for cut in (1, 2)] == [2, 1]
    torch.testing.assert_close(own[2]["units.2.bn1.running_mean"], 0.1 * mean)


@pytest.mark.parametrize("settings", [SplitEESettings(), SHARED], ids=["cut", "shared"])
def test_resumed_sequential_continues_bit_for_bit(slim, batch, settings):
    one, two = (Sequential(slim, settings, CPU) for _ in range(2))
    one.open_round(1, {0: 1, 1: 3}, SGD)
    one.step_many({0: batch(slim, 1), 1: batch(slim, 3)})
    assert one.close_round({0: 6, 1: 6}, {}) == ()
    two.load_state_dict(*one.state_dict())
    features, _ = batch(slim, 3)
    assert torch.equal(one.logits(1, 3, features), two.logits(1, 3, features))
    for server in (one, two):
        server.open_round(2, {0: 2, 1: 3}, SGD)
        server.step_many({0: batch(slim, 2, seed=8), 1: batch(slim, 3, seed=9)})
    assert snapshot(one).keys() == snapshot(two).keys()
    assert all(torch.equal(value, snapshot(two)[key]) for key, value in snapshot(one).items())
    assert sorted(statistics_by_cut(snapshot(two))) == ([1, 2, 3] if settings is not SHARED else [])

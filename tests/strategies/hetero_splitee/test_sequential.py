import copy

import pytest
import torch

from strategies.hetero_splitee.config import SplitEEConfig
from strategies.hetero_splitee.learner import MOMENTUM, Sgd, server_part
from strategies.hetero_splitee.sequential import Sequential

CPU, SGD = torch.device("cpu"), Sgd(0.1, 0.9, 0.01)


def snapshot(server):
    return {key: value.clone() for key, value in server.learner.state_dict().items()}


def unit(key: str) -> int:
    kind, number, *_ = key.removeprefix(MOMENTUM).split(".")
    return int(number) if kind == "units" else 99


def test_layers_before_the_cut_stay_bit_for_bit_with_their_momentum(slim, batch):
    server = Sequential(slim, SplitEEConfig(), CPU)
    server.open_round(1, {0: 1, 1: 3}, SGD)
    server.step(0, *batch(slim, 1))  # gives every layer a momentum that a careless step would apply
    before = snapshot(server)
    server.step(1, *batch(slim, 3))
    after = snapshot(server)
    assert any(key.startswith(MOMENTUM) and before[key].abs().max() > 0 for key in before if unit(key) < 3)
    for key, value in after.items():
        assert torch.equal(value, before[key]) == (unit(key) < 3), key


def test_the_given_network_is_left_alone_and_the_parts_share_one_model(slim, batch):
    given = {key: value.clone() for key, value in slim.state_dict().items()}
    server = Sequential(slim, SplitEEConfig(), CPU)
    server.open_round(1, {0: 1, 1: 2, 2: 4}, SGD)
    server.step_many({client: batch(slim, cut, client) for client, cut in {2: 4, 0: 1, 1: 2}.items()})
    assert all(torch.equal(value, given[key]) for key, value in slim.state_dict().items())
    whole = dict(server.learner.network.named_parameters())
    for part, _ in server.parts.values():
        assert all(parameter is whole[key] for key, parameter in part.named_parameters())


def test_clients_are_served_in_their_order_one_after_another(slim, batch):
    cuts = {0: 2, 1: 3, 2: 1}
    batches = {client: batch(slim, cut, client) for client, cut in cuts.items()}
    server = Sequential(slim, SplitEEConfig(), CPU)
    server.open_round(1, cuts, SGD)
    results = server.step_many({client: batches[client] for client in (2, 0, 1)})
    # by the book: one model, one optimiser of torch's, gradients of skipped layers None
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


def test_gradients_are_returned_only_where_the_method_wants_them(lenet, batch):
    for gradient in ("stop", "return"):
        server = Sequential(lenet, SplitEEConfig(gradient=gradient), CPU)
        server.open_round(1, {0: 1}, SGD)
        features, y = batch(lenet, 1)
        result = server.step(0, features, y)
        assert (result.gradient is not None) == (gradient == "return")
        if result.gradient is not None:
            assert result.gradient.shape == features.shape


def test_logits_are_the_models_at_any_cut(slim, batch):
    server = Sequential(slim, SplitEEConfig(), CPU)
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


def test_a_resumed_server_goes_on_bit_for_bit(slim, batch):
    one, two = (Sequential(slim, SplitEEConfig(), CPU) for _ in range(2))
    one.open_round(1, {0: 1, 1: 3}, SGD)
    one.step_many({0: batch(slim, 1), 1: batch(slim, 3)})
    assert one.close_round({0: 6, 1: 6}, {}) == ()
    two.load_state_dict(*one.state_dict())
    for server in (one, two):
        server.open_round(2, {0: 2}, SGD)
        server.step(0, *batch(slim, 2, seed=8))
    assert all(torch.equal(value, snapshot(two)[key]) for key, value in snapshot(one).items())

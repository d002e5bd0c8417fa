import copy

import pytest
import torch
import torch.nn.functional as F

from common.networks import EarlyExitNetwork
from strategies.hetero_splitee.client_step import finish, forward, local_step
from strategies.hetero_splitee.learner import Learner, Sgd, device_part, server_part, train_step
from strategies.hetero_splitee.sequential import Sequential
from strategies.hetero_splitee.settings import SplitEESettings

CPU, SGD = torch.device("cpu"), Sgd(0.1, 0.9, 0.01)


def images(network, seed=0, size=6):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(size, *network.input_shape, generator=source)
    return x, torch.randint(0, network.num_classes, (size,), generator=source)


def state(learner):
    return {key: value.clone() for key, value in learner.state_dict().items()}


def joined(network, cut) -> tuple[EarlyExitNetwork, torch.optim.SGD]:
    """Return the network with its last exit alone, and an optimiser to train it end to end."""
    units = {int(index): copy.deepcopy(unit) for index, unit in network.units.items()}
    whole = EarlyExitNetwork(
        units, {network.end: copy.deepcopy(network.head(network.end))}, network.architecture
    ).train()
    return whole, torch.optim.SGD(whole.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


@pytest.mark.parametrize("prior", [None, torch.tensor([-3.0, -0.1, -4.0])], ids=["none", "own"])
def test_local_step_equals_torch_and_returns_features_before_it(slim, prior):
    device, twin = Learner.copy_of(device_part(slim, 3), CPU), device_part(slim, 3)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in range(3):
        x, y = images(slim, seed)
        features, loss = local_step(device, SGD, x, y, prior)
        outputs = twin.forward_exits(x)
        expected = F.cross_entropy(outputs.logits[0] + (0 if prior is None else prior), y)
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert torch.allclose(features, outputs.trunk, atol=1e-6)
        assert torch.allclose(loss, expected, atol=1e-6)
        assert not features.requires_grad
        assert not loss.requires_grad
    for key, value in twin.state_dict().items():
        assert torch.allclose(device.network.state_dict()[key], value, atol=1e-6), key


def test_server_step_does_not_change_the_device(slim):
    device, server = Learner.copy_of(device_part(slim, 2), CPU), Sequential(slim, SplitEESettings(), CPU)
    server.open_round(1, {0: 2}, SGD)
    x, y = images(slim)
    features, _ = local_step(device, SGD, x, y)
    before, gradients, sent = state(device), device.model.trained.grad.clone(), features.clone()
    server.step(0, features, y)
    assert all(torch.equal(value, before[key]) for key, value in state(device).items())
    assert torch.equal(device.model.trained.grad, gradients)
    assert torch.equal(features, sent)


@pytest.mark.parametrize("cut", [1, 2, 4])
def test_split_learning_equals_end_to_end_backpropagation(slim, cut):
    device = Learner.copy_of(device_part(slim, cut), CPU)
    server = Learner.copy_of(server_part(slim, cut), CPU)
    whole, optimizer = joined(slim, cut)
    head = {key: value.clone() for key, value in device.state_dict().items() if "exits" in key}
    for seed in range(3):
        x, y = images(slim, seed)
        outputs = forward(device, x)
        answer = train_step(server, server.network, 0, SGD, outputs.trunk.detach(), y, return_gradient=True)
        finish(device, SGD, outputs, y, answer.gradient)
        optimizer.zero_grad()
        loss = F.cross_entropy(whole(x)[-1], y)
        loss.backward()
        optimizer.step()
        assert torch.allclose(answer.loss, loss, atol=1e-6)
    parts = {**device.network.state_dict(), **server.network.state_dict()}
    for key, value in whole.state_dict().items():
        assert torch.allclose(parts[key], value, atol=1e-6), key
    # split learning has no exit: neither weight decay nor momentum moves it
    assert all(torch.equal(device.state_dict()[key], value) for key, value in head.items())


@pytest.mark.parametrize("prior", [None, torch.tensor([-3.0, -0.1, -4.0])], ids=["none", "own"])
def test_finish_adds_the_weighted_exit_loss(lenet, prior):
    device, server = Learner.copy_of(device_part(lenet, 2), CPU), server_part(lenet, 2)
    twin = device_part(lenet, 2)
    x, y = images(lenet)
    outputs = twin.forward_exits(x)
    own = F.cross_entropy(outputs.logits[0] + (0 if prior is None else prior), y)
    total = F.cross_entropy(server(outputs.trunk)[-1], y) + 0.3 * own
    total.backward()
    sent = forward(device, x)
    leaf = sent.trunk.detach().requires_grad_()
    F.cross_entropy(server(leaf)[-1], y).backward()
    loss = finish(device, SGD, sent, y, leaf.grad, exit_weight=0.3, prior=prior)
    assert torch.allclose(loss, own, atol=1e-6)
    for key, parameter in twin.named_parameters():
        stepped = parameter - 0.1 * (parameter.grad + 0.01 * parameter)
        assert torch.allclose(device.network.state_dict()[key], stepped, atol=1e-6), key

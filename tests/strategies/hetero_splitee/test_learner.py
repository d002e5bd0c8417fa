import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build
from strategies.hetero_splitee.learner import (
    Learner,
    Sgd,
    device_part,
    final_logits,
    server_part,
    statistics,
    train_step,
    with_statistics,
)

CPU = torch.device("cpu")
BACKBONES = [
    NetworkSpec("resnet_slim", 4, (3, 16, 16)),
    NetworkSpec("resnet18", 4, (3, 16, 16), width=8),
    NetworkSpec("convnet", 4, (3, 22, 22), width=6),
    NetworkSpec("vit_small32", 4, (3, 32, 32), width=64),
    NetworkSpec("lenet", 4, (1, 8, 8)),
]


@torch.no_grad()
@pytest.mark.parametrize("only_last", [True, False])
@pytest.mark.parametrize("spec", BACKBONES, ids=lambda spec: spec.name)
def test_both_parts_equal_the_whole_network_at_every_cut(spec, only_last):
    units = len(build(spec, 1).units)
    network = build(NetworkSpec(**{**vars(spec), "exits": (units,) if only_last else ()}), seed=1)
    x = torch.randn(3, *spec.input_shape, generator=torch.Generator().manual_seed(2))
    network.train()(x)  # gives batch norm statistics that are not trivial
    whole = network.eval()(x)[-1]
    for cut in range(1, units):
        device, server = device_part(network, cut), server_part(network, cut)
        assert (device.exit_positions, server.exit_positions) == ((cut,), (units,))
        outputs = device.forward_exits(x)
        assert (server(outputs.trunk)[-1] - whole).abs().max() == 0
        assert outputs.logits[0].shape == (3, 4)


def test_device_part_copies_and_server_part_shares_parameters(slim):
    device, server = device_part(slim, 2), server_part(slim, 2)
    own = dict(slim.named_parameters())
    assert not {id(p) for p in device.parameters()} & {id(p) for p in own.values()}
    assert all(parameter is own[key] for key, parameter in server.named_parameters())
    assert set(device.state_dict()) | set(server.state_dict()) == {
        key for key in slim.state_dict() if not key.startswith(("exits.3", "exits.4"))
    }


def test_with_statistics_shares_all_but_the_statistics(slim):
    part = server_part(slim, 2)
    own, weights = with_statistics(part), dict(part.named_parameters())
    assert all(weight is weights[key] for key, weight in own.named_parameters())
    assert {key.rpartition(".")[2] for key in statistics(own)} == {"running_mean", "running_var", "num_batches_tracked"}
    own(torch.ones(2, *slim.features_at(slim.example(1), 2).shape[1:]))
    for key, value in statistics(part).items():
        if "num_batches" in key:
            assert (value, statistics(own)[key]) == (0, 1)
    initial = {key: torch.full_like(value, 3) for key, value in statistics(part).items()}
    assert all((value == 3).all() for value in statistics(with_statistics(part, initial)).values())
    assert not any((value == 3).all() for value in statistics(part).values())


@pytest.mark.parametrize("cut", [0, 5])
def test_parts_reject_a_cut_without_layers_on_one_side(slim, cut):
    for part in (device_part, server_part):
        with pytest.raises(UserError, match=r"choose one of 1\.\.4"):
            part(slim, cut)


def test_sgd_equals_values_by_hand():
    weights, momentum = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.0])
    Sgd(lr=0.1, momentum=0.5, weight_decay=0.25).step_(weights, torch.tensor([1.0, 3.0]), momentum)
    assert torch.allclose(momentum, torch.tensor([1.5, 2.5]))  # 0.5*0.5 + 1 + 0.25*1; 3 - 0.5
    assert torch.allclose(weights, torch.tensor([0.85, -2.25]))


def test_sgd_equals_that_of_torch(slim, batch):
    learner = Learner.copy_of(server_part(slim, 2), CPU)
    twin = Learner.copy_of(server_part(slim, 2), CPU).network
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in range(3):
        features, y = batch(slim, 2, seed)
        result = train_step(learner, learner.network, 0, Sgd(0.1, 0.9, 0.01), features, y, return_gradient=False)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(twin(features)[-1], y)
        loss.backward()
        optimizer.step()
        assert result.loss == loss.detach()
        assert result.gradient is None
    for key, value in twin.state_dict().items():
        assert torch.allclose(learner.network.state_dict()[key], value, atol=1e-7), key
    for key, parameter in twin.named_parameters():
        assert torch.allclose(learner.momenta()[key], optimizer.state[parameter]["momentum_buffer"], atol=1e-6), key


def test_returned_gradient_is_that_of_the_mean_loss(lenet, batch):
    learner = Learner.copy_of(server_part(lenet, 1), CPU)
    features, y = batch(lenet, 1)
    leaf = features.clone().requires_grad_()
    torch.nn.functional.cross_entropy(server_part(lenet, 1)(leaf)[-1], y).backward()
    result = train_step(learner, learner.network, 0, Sgd(0.1, 0.9, 0.0), features, y, return_gradient=True)
    assert torch.equal(result.gradient, leaf.grad)
    assert not features.requires_grad


def test_offset_counts_the_weights_before_a_cut(lenet):
    learner = Learner.copy_of(lenet, CPU)
    sizes = [sum(p.numel() for p in unit.parameters()) for unit in lenet.units.values()]
    assert [learner.offset(cut) for cut in range(4)] == [0, sizes[0], sum(sizes[:2]), sum(sizes)]
    assert Learner.copy_of(server_part(lenet, 1), CPU).offset(2) == sizes[1]


def test_load_state_dict_keeps_values_without_an_entry(slim, batch):
    learner, fresh = (Learner.copy_of(server_part(slim, 2), CPU) for _ in range(2))
    train_step(learner, learner.network, 0, Sgd(0.1, 0.9, 0.0), *batch(slim, 2), return_gradient=False)
    state = {key: value.clone() for key, value in learner.state_dict().items()}
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    fresh.load_state_dict({key: value for key, value in state.items() if "units.3" not in key})
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, before[key] if "units.3" in key else state[key]), key
    assert any(key.startswith("momentum.units.4") and value.abs().max() > 0 for key, value in state.items())


def test_final_logits_uses_running_statistics_and_changes_nothing(slim, batch):
    part = server_part(slim, 2)
    features, _ = batch(slim, 2)
    before = {key: value.clone() for key, value in part.state_dict().items()}
    logits = final_logits(part, features)
    assert part.training
    assert part.units["3"].bn1.training
    assert torch.allclose(final_logits(part, features[:1]), logits[:1], atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in part.state_dict().items())

import pytest
import torch

from common.networks import NetworkSpec, build
from strategies.darkdistill.diagnostics import Movement, shrinkage, variety


def test_movement_tells_distillation_decay_and_clients_apart() -> None:
    network = build(NetworkSpec("lenet", num_classes=3, input_shape=(1, 6, 6), width=2), seed=0)
    trained = list(network.parameters())[:2]
    received = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5)  # the clients
    averaged = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.2)
    gradient = 0.0
    for step in range(3):
        for parameter in trained:
            parameter.grad = torch.full_like(parameter, float(step))
        optimizer.step()
        gradient = 0.98 * gradient - 0.1 * step
    count = sum(parameter.numel() for parameter in trained)
    kept = shrinkage(optimizer, 3)
    assert kept == pytest.approx(0.98**3)
    movement = Movement.measure(received, [(averaged, network)], kept)
    assert movement.clients == pytest.approx(0.5 * count**0.5, rel=1e-5)
    assert movement.distillation == pytest.approx(-gradient * count**0.5, rel=1e-4)
    names = [name for name, p in network.named_parameters() if p.grad is not None]
    length = torch.cat([averaged[name].flatten() for name in names]).norm().item()
    assert movement.decay == pytest.approx((1 - 0.98**3) * length, rel=1e-4)
    assert movement.share == pytest.approx(movement.distillation / movement.clients)
    assert list(movement.terms()) == ["moved-clients", "moved-distillation", "moved-decay"]


def test_share_without_clients() -> None:
    assert Movement(0.0, 0.0, 1.0).share == 0
    assert Movement(0.0, 1.0, 0.0).share == float("inf")


def test_variety_counts_the_directions_in_which_samples_vary() -> None:
    line = torch.tensor([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]])
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    flat = torch.tensor([[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]])  # variances 9 and 1: (9 + 1)^2 / (81 + 1)
    assert variety(line) == pytest.approx(1)
    assert variety(square) == pytest.approx(2)
    assert variety(100 * square + 7) == pytest.approx(2)
    assert variety(flat) == pytest.approx(100 / 82)
    assert variety(torch.ones(4, 3)) == 0

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.objectives import Boosted


def network(ensemble: float = 0.2) -> EarlyExitNetwork:
    spec = NetworkSpec(name="resnet_slim", num_classes=10, input_shape=(1, 8, 8), ensemble=ensemble)
    return build(spec, seed=0).double()


def batch(size: int = 8) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(size, 1, 8, 8, generator=random, dtype=torch.float64)
    return x, torch.randint(10, (size,), generator=random)


def group(name: str, positions: tuple[int, ...]) -> int:
    """Return the block group (the units before exit e) of a trunk parameter."""
    unit = int(name.split(".")[1])
    return next(index for index, position in enumerate(positions) if unit < position)


def expected_gradients(model: EarlyExitNetwork, x: Tensor, y: Tensor, multiplier: list[list[float]]) -> dict:
    """Return the sum over exits of multiplier[group][exit] times that exit's own gradient; heads unscaled."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for index, logits in enumerate(model(x)):
        gradients = torch.autograd.grad(
            F.cross_entropy(logits, y), parameters, retain_graph=True, materialize_grads=True
        )
        for name, gradient in zip(names, gradients, strict=True):
            in_trunk = name.startswith("units.")
            factor = multiplier[group(name, model.exit_positions)][index] if in_trunk else 1.0
            total[name] += factor * gradient
    return total


def boost_multipliers(num_exits: int) -> list[list[float]]:
    """Return BoostNet's: all exits after a block group reach it with the same share; all E come after group 0."""
    return [
        [1.0 / (num_exits - first) if index >= first else 0.0 for index in range(num_exits)]
        for first in range(num_exits)
    ]


def legacy_multipliers(num_exits: int) -> list[list[float]]:
    """Return the legacy ones: shares shrink at every exit: 1/4, 1/12, 1/24, 1/24 in group 0 of four exits."""
    return [
        [
            math.prod(1.0 / (num_exits - passed) for passed in range(first, index + 1)) if index >= first else 0.0
            for index in range(num_exits)
        ]
        for first in range(num_exits)
    ]


def test_multipliers_match_the_published_ones() -> None:
    assert boost_multipliers(4)[0] == [1 / 4] * 4
    assert legacy_multipliers(4)[0] == pytest.approx([1 / 4, 1 / 12, 1 / 24, 1 / 24])


def test_total_is_the_sum_of_the_ensembled_losses() -> None:
    model, raw, (x, y) = network(), network(ensemble=0.0), batch()
    ensembled = torch.zeros(8, 10, dtype=torch.float64)
    losses: list[Tensor] = []
    for logits in raw(x):
        ensembled = logits + 0.2 * ensembled
        losses.append(F.cross_entropy(ensembled, y, reduction="none"))
    loss = Boosted().loss(model, x, y)
    torch.testing.assert_close(loss.per_exit, torch.stack(losses).detach())
    torch.testing.assert_close(loss.total, torch.stack(losses).mean(1).sum())
    assert not loss.per_exit.requires_grad


@pytest.mark.parametrize(
    ("objective", "multipliers"),
    [(Boosted(), boost_multipliers(4)), (Boosted("legacy"), legacy_multipliers(4))],
)
def test_gradients_match_the_multipliers(objective: Boosted, multipliers: list[list[float]]) -> None:
    model, (x, y) = network(), batch()
    assert len(model.exit_positions) == 4
    objective.loss(model, x, y).total.backward()
    expected = expected_gradients(model, x, y, multipliers)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_earlier_exits_get_no_gradient_from_later_losses() -> None:
    model, (x, y) = network(), batch()
    head = list(model.exits[str(model.exit_positions[0])].parameters())
    boosted = torch.autograd.grad(Boosted().loss(model, x, y).total, head)
    alone = torch.autograd.grad(F.cross_entropy(model(x)[0], y), head)
    for one, other in zip(boosted, alone, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("depth", [1, 2])
def test_shallow_tiers_have_equal_shares(depth: int) -> None:
    model, (x, y) = network().prefix(depth), batch()
    Boosted().loss(model, x, y).total.backward()
    expected = expected_gradients(model, x, y, boost_multipliers(depth))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_network_without_ensemble_is_refused() -> None:
    x, y = batch()
    with pytest.raises(UserError, match=r"ensemble=0\.2"):
        Boosted().loss(network(ensemble=0.0), x, y)

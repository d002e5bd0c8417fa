import copy
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save
from torch import Tensor, nn

from common.errors import UserError
from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.objectives import LearnedWeights, ObjectiveConfig
from common.objectives.l2w import assigned_loss, centred_weights

CONFIG = ObjectiveConfig(name="l2w")
LR = 0.05


def network() -> EarlyExitNetwork:
    return build(NetworkSpec(name="resnet_slim", num_classes=10, input_shape=(1, 8, 8)), seed=0).train()


def batch(size: int = 32, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, 1, 8, 8, generator=random), torch.randint(10, (size,), generator=random)


def snapshot(objective: LearnedWeights) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in objective.weight_network.parameters()]


def moved(before: list[Tensor], objective: LearnedWeights) -> bool:
    return any(
        not torch.equal(old, new) for old, new in zip(before, objective.weight_network.parameters(), strict=True)
    )


def test_centred_weights_match_a_result_by_hand() -> None:
    raw = torch.tensor([[1.0, -1.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    expected = torch.tensor([[1.8, 0.2, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(centred_weights(raw, 0.8), expected)


def test_weights_have_mean_one_per_sample_and_stay_in_range() -> None:
    objective = LearnedWeights(CONFIG, 4, seed=0)
    # A saturated weight network reaches the ends of the range.
    with torch.no_grad():
        objective.weight_network.output.weight.mul_(1e3)
    weights = objective.weights(10 * torch.rand(4, 200, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(weights.mean(0), torch.ones(200))
    reach = 0.8 * 2 * 3 / 4
    assert 1 - reach - 1e-6 <= weights.min() < 0.5
    assert 1.5 < weights.max() <= 1 + reach + 1e-6


def test_weight_network_matches_its_source() -> None:
    weight_network = LearnedWeights(CONFIG, 3, seed=0).weight_network
    hidden, output = weight_network.hidden, weight_network.output
    assert (hidden.in_features, hidden.out_features, output.out_features) == (3, 500, 3)
    losses = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(weight_network(losses), output(hidden(losses).clamp(min=0)).tanh())


def test_weight_network_depends_on_its_seed_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (LearnedWeights(CONFIG, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert not moved(snapshot(one), same)
    assert moved(snapshot(one), other)


def test_total_is_the_weighted_sum_with_constant_weights() -> None:
    model, (x, y) = network(), batch()
    objective = LearnedWeights(CONFIG, 4, seed=0)
    loss = objective.loss(model, x, y)
    weights = objective.weights(loss.per_exit).detach()
    torch.testing.assert_close(loss.total.detach(), (weights * loss.per_exit).mean(1).sum())
    loss.total.backward()
    assert all(parameter.grad is None for parameter in objective.weight_network.parameters())
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_assigned_loss_counts_samples_at_their_exit_only() -> None:
    # n = 5, E = 2: exit 1 takes samples 1 and 3; at exit 2 only the others count.
    first = torch.tensor([[1.0, 0.0], [5.0, 0.0], [2.0, 0.0], [4.0, 0.0], [3.0, 0.0]])
    second = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    y = torch.tensor([0, 1, 0, 0, 1])
    expected = (math.log1p(math.exp(5)) + math.log1p(math.exp(-4))) / 2 + math.log(2)
    assert assigned_loss([first, second], y, p=30.0).item() == pytest.approx(expected, rel=1e-6)


def test_assigned_loss_skips_exits_without_samples() -> None:
    logits = [torch.zeros(1, 2)] * 3
    assert assigned_loss(logits, torch.tensor([0]), p=30.0).item() == pytest.approx(math.log(2))


class TwoExits(nn.Module):
    """The smallest network with two exits and a second derivative: linear heads on a shared linear trunk."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(5)
        self.trunk = nn.Parameter(torch.randn(3, 4, generator=random, dtype=torch.float64))
        self.heads = nn.Parameter(torch.randn(2, 4, 3, generator=random, dtype=torch.float64))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = torch.tanh(x @ self.trunk)
        return [features @ self.heads[0], features @ self.heads[1]]


def toy() -> tuple[TwoExits, LearnedWeights, Tensor, Tensor]:
    random = torch.Generator().manual_seed(6)
    x = torch.randn(12, 3, generator=random, dtype=torch.float64)
    y = torch.randint(3, (12,), generator=random)
    objective = LearnedWeights(ObjectiveConfig(name="l2w", l2w_hidden=5), 2, seed=0)
    objective.weight_network.double()
    return TwoExits(), objective, x, y


def test_meta_loss_is_a_real_step_followed_by_the_assigned_loss() -> None:
    model, objective, x, y = toy()
    stepped = copy.deepcopy(model)
    objective.loss(stepped, x[:6], y[:6]).total.backward()
    torch.optim.SGD(stepped.parameters(), lr=0.3).step()
    expected = assigned_loss(stepped(x[6:]), y[6:], p=30.0)
    torch.testing.assert_close(objective.meta_loss(model, x, y, lr=0.3), expected)


def test_meta_gradient_matches_finite_differences() -> None:
    model, objective, x, y = toy()
    parameters = list(objective.weight_network.parameters())
    gradients = torch.autograd.grad(objective.meta_loss(model, x, y, lr=0.3), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        flat, step = parameter.data.view(-1), 1e-5
        for index in range(0, len(flat), 3):
            value = flat[index].item()
            flat[index] = value + step
            above = objective.meta_loss(model, x, y, lr=0.3).item()
            flat[index] = value - step
            below = objective.meta_loss(model, x, y, lr=0.3).item()
            flat[index] = value
            difference = (above - below) / (2 * step)
            assert gradient.view(-1)[index].item() == pytest.approx(difference, rel=1e-4, abs=1e-9)


def test_meta_updates_lower_the_meta_loss() -> None:
    model, (x, y) = network(), batch()
    objective = LearnedWeights(ObjectiveConfig(name="l2w", l2w_interval=1), 4, seed=0)
    before = objective.meta_loss(model, x, y, LR).item()
    for _ in range(5):
        objective.before_step(model, x, y, LR)
    assert objective.meta_loss(model, x, y, LR).item() < before


def test_weight_network_moves_every_tenth_batch() -> None:
    model, (x, y) = network(), batch(8)
    objective = LearnedWeights(CONFIG, 4, seed=0)
    moves: list[int] = []
    for index in range(12):
        before = snapshot(objective)
        objective.before_step(model, x, y, LR)
        if moved(before, objective):
            moves.append(index)
    assert moves == [0, 10]


def test_meta_update_does_not_change_the_network() -> None:
    model, (x, y) = network(), batch()
    before = copy.deepcopy(model.state_dict())
    objective = LearnedWeights(CONFIG, 4, seed=0)
    untouched = snapshot(objective)
    objective.before_step(model, x, y, LR)
    assert moved(untouched, objective)
    assert any(name.endswith("running_mean") for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_frozen_parameters_stay_out_of_the_pseudo_step() -> None:
    model, (x, y) = network(), batch()
    for parameter in model.units.parameters():
        parameter.requires_grad_(False)
    objective = LearnedWeights(CONFIG, 4, seed=0)
    before = snapshot(objective)
    objective.before_step(model, x, y, LR)
    assert moved(before, objective)


class AttentionNetwork(nn.Module):
    """Two exits on fused attention, whose fast kernels cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(7)
        self.projection = nn.Parameter(torch.randn(8, 24, generator=random))
        self.heads = nn.Parameter(torch.randn(2, 8, 10, generator=random))

    def forward(self, x: Tensor) -> list[Tensor]:
        query, key, value = (x @ self.projection).chunk(3, dim=-1)
        pooled = F.scaled_dot_product_attention(query, key, value).squeeze(1).mean(1)
        return [pooled @ self.heads[0], pooled @ self.heads[1]]


def test_meta_update_works_with_attention() -> None:
    x, y = batch(8)
    objective = LearnedWeights(CONFIG, 2, seed=0)
    before = snapshot(objective)
    objective.before_step(AttentionNetwork(), x, y, LR)  # type: ignore[arg-type]
    assert moved(before, objective)


def test_one_exit_is_joint_training() -> None:
    model, (x, y) = network().prefix(1), batch()
    objective = LearnedWeights(CONFIG, 1, seed=0)
    before = snapshot(objective)
    objective.before_step(model, x, y, LR)
    assert not moved(before, objective)
    torch.testing.assert_close(objective.loss(model, x, y).total, F.cross_entropy(model(x)[0], y))


@pytest.mark.parametrize("size", [1, 3])
def test_tiny_last_batches_are_accepted(size: int) -> None:
    objective = LearnedWeights(CONFIG, 4, seed=0)
    before = snapshot(objective)
    objective.before_step(network(), *batch(size), LR)
    assert not moved(before, objective)
    assert objective.batches == 1


def test_stored_state_continues_bit_for_bit() -> None:
    model = network()
    config = ObjectiveConfig(name="l2w", l2w_interval=2)
    whole = LearnedWeights(config, 4, seed=0)
    for index in range(3):
        whole.before_step(model, *batch(8, index), LR)
    restored = LearnedWeights(config, 4, seed=9)
    restored.load_state_dict(load(save(whole.state_dict())))
    for index in range(3, 6):
        whole.before_step(model, *batch(8, index), LR)
        restored.before_step(model, *batch(8, index), LR)
    left, right = whole.state_dict(), restored.state_dict()
    assert int(left["batches"]) == 6
    assert left.keys() == right.keys()
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_state_does_not_change_with_later_training() -> None:
    objective = LearnedWeights(CONFIG, 4, seed=0)
    state = objective.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    objective.before_step(network(), *batch(8), LR)
    assert all(torch.equal(value, kept[name]) for name, value in state.items())


def test_fresh_and_trained_states_have_the_same_keys() -> None:
    objective = LearnedWeights(CONFIG, 4, seed=0)
    fresh = objective.state_dict()
    objective.before_step(network(), *batch(8), LR)
    trained = objective.state_dict()
    assert {name: value.shape for name, value in fresh.items()} == {
        name: value.shape for name, value in trained.items()
    }


def test_states_of_another_objective_are_refused() -> None:
    objective = LearnedWeights(CONFIG, 4, seed=0)
    with pytest.raises(UserError, match="4 exits"):
        objective.load_state_dict(LearnedWeights(CONFIG, 3, seed=0).state_dict())
    with pytest.raises(UserError, match="4 exits"):
        objective.load_state_dict({})

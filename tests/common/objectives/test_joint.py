import torch
import torch.nn.functional as F

from common.networks import EarlyExitNetwork, NetworkSpec, build
from common.objectives import Joint, exit_losses


def network() -> EarlyExitNetwork:
    return build(NetworkSpec(name="resnet_slim", num_classes=10, input_shape=(1, 8, 8)), seed=0)


def batch(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(size, 1, 8, 8, generator=random), torch.randint(10, (size,), generator=random)


def test_exit_losses_match_a_result_by_hand() -> None:
    even, sure = torch.zeros(2, 4), torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    losses = exit_losses([even, sure], torch.tensor([1, 0]))
    torch.testing.assert_close(losses, torch.tensor([4.0, 4.0, 2.0, 2.0]).log().view(2, 2))


def test_total_is_the_sum_over_exits_of_the_mean_loss() -> None:
    model, (x, y) = network(), batch()
    loss = Joint().loss(model, x, y)
    expected = sum(F.cross_entropy(logits, y) for logits in model(x))
    torch.testing.assert_close(loss.total, torch.as_tensor(expected))
    assert loss.per_exit.shape == (len(model.exit_positions), 8)
    assert not loss.per_exit.requires_grad
    torch.testing.assert_close(loss.per_exit.mean(1).sum(), loss.total.detach())


def test_weights_scale_the_total_and_not_the_reported_losses() -> None:
    model, (x, y) = network(), batch()
    plain = Joint().loss(model, x, y)
    weights = tuple(float(2**index) for index in range(len(model.exit_positions)))
    weighted = Joint(weights).loss(model, x, y)
    torch.testing.assert_close(weighted.per_exit, plain.per_exit)
    torch.testing.assert_close(weighted.total.detach(), (torch.tensor(weights) * plain.per_exit.mean(1)).sum())


def test_shallow_tier_uses_the_first_weight() -> None:
    model, (x, y) = network().prefix(1), batch()
    loss = Joint((3.0, 5.0, 7.0, 9.0)).loss(model, x, y)
    torch.testing.assert_close(loss.total.detach(), 3.0 * loss.per_exit.mean())

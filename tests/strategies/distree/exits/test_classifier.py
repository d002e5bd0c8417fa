import pytest
import torch
from torch import nn

from strategies.distree.exits.classifier import ColumnBlocks, OwnHeads

SIZES = {1: 3, 2: 2}
EXITS, CLASSES = 4, 5


@pytest.fixture
def blocks() -> ColumnBlocks:
    return ColumnBlocks(SIZES, EXITS, CLASSES, seed=1)


def features(batch: int) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.rand(batch, size, generator=generator) for k, size in SIZES.items()}


def test_state_dict_shapes(blocks: ColumnBlocks) -> None:
    assert {name: tuple(value.shape) for name, value in blocks.state_dict().items()} == {
        "blocks.1": (4, 5, 3), "blocks.2": (4, 5, 2), "bias": (4, 5),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("exit_index", range(EXITS))
def test_blocks_at_one_exit_equal_one_linear_layer(blocks: ColumnBlocks, exit_index: int) -> None:
    joint = nn.Linear(5, CLASSES)
    joint.weight.copy_(torch.cat([blocks.blocks["1"][exit_index], blocks.blocks["2"][exit_index]], dim=1))
    joint.bias.copy_(blocks.bias[exit_index])
    given = features(6)
    expected = joint(torch.cat([given[1], given[2]], dim=1))
    torch.testing.assert_close(blocks(given, exit_index), expected)
    exits = torch.full((6,), exit_index)
    torch.testing.assert_close(blocks.combine(given, {1: exits, 2: exits}), expected)


@torch.no_grad()
def test_combine_of_different_exits_by_hand() -> None:
    blocks = ColumnBlocks({1: 1, 2: 2}, num_exits=2, num_classes=2, seed=0)
    blocks.blocks["1"].copy_(torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]))
    blocks.blocks["2"].copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 1.0], [0.0, 2.0]]]))
    blocks.bias.copy_(torch.tensor([[0.0, 4.0], [2.0, 8.0]]))
    given = {1: torch.tensor([[3.0], [3.0]]), 2: torch.tensor([[5.0, 7.0], [5.0, 7.0]])}
    # first sample: exits 2 and 1: bias (1, 6), 3 (10, 20), (5, 7); second: exits 1 and 2: (1, 6), 3 (1, 2), (12, 14)
    exits = {1: torch.tensor([1, 0]), 2: torch.tensor([0, 1])}
    assert blocks.combine(given, exits).tolist() == [[36.0, 73.0], [16.0, 26.0]]


@torch.no_grad()
def test_order_of_students_does_not_matter(blocks: ColumnBlocks) -> None:
    given = features(3)
    turned = dict(reversed(given.items()))
    exits = {1: torch.tensor([0, 1, 2]), 2: torch.tensor([3, 1, 0])}
    assert torch.equal(blocks.combine(turned, exits), blocks.combine(given, exits))
    assert torch.equal(blocks(turned, 1), blocks(given, 1))


def test_same_seed_gives_the_same_blocks(blocks: ColumnBlocks) -> None:
    before = torch.get_rng_state()
    again, other = ColumnBlocks(SIZES, EXITS, CLASSES, seed=1), ColumnBlocks(SIZES, EXITS, CLASSES, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in blocks.state_dict().items())
    assert not torch.equal(blocks.bias, other.bias)


def test_gradients_reach_only_the_used_exit(blocks: ColumnBlocks) -> None:
    blocks(features(2), 1).sum().backward()
    for parameter in blocks.parameters():
        assert parameter.grad is not None
        assert [bool(at_exit.any()) for at_exit in parameter.grad] == [False, True, False, False]


@torch.no_grad()
def test_own_heads_by_hand() -> None:
    own = OwnHeads({1: 1, 2: 2}, num_exits=2, num_classes=2)
    given = [torch.tensor([[1.0, 10.0]]), torch.tensor([[2.0, 20.0]])]
    assert own(2, given).tolist() == [[[0.0, 0.0]]] * 2
    own.weights["2"].copy_(torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 1.0]]]))
    own.biases["2"].copy_(torch.tensor([[0.0, 0.5], [0.25, 0.0]]))
    assert own(2, given).tolist() == [[[1.0, 10.5]], [[20.25, 22.0]]]


@torch.no_grad()
def test_only_copies_one_students_heads() -> None:
    own = OwnHeads({1: 1, 12: 2}, num_exits=3, num_classes=4)
    own.weights["12"].fill_(1)
    part = own.only(12)
    assert {key: tuple(value.shape) for key, value in part.state_dict().items()} == {
        "weights.12": (3, 4, 2), "biases.12": (3, 4),
    }  # fmt: skip
    assert torch.equal(part.weights["12"], own.weights["12"])
    part.weights["12"].fill_(2)
    assert own.weights["12"].unique().tolist() == [1]

import pytest
import torch

from common.networks.heads import ClassTokenLinear, PooledLinear, PreactivatedPooledLinear, Squares


def test_maps_are_averaged() -> None:
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    head = PooledLinear(2, 3)
    assert head.pooled(maps).tolist() == [[1.5, 5.5]]
    assert head(head.pooled(maps)).shape == (1, 3)


def test_preactivated_map_is_rectified_before_averaging() -> None:
    head = PreactivatedPooledLinear(1, 3).eval()
    torch.testing.assert_close(head.pooled(torch.tensor([[[[-1.0, 3.0]]]])), torch.tensor([[1.5]]), atol=1e-4, rtol=0)


def test_a_divided_map_keeps_the_mean_of_each_square_channel_by_channel() -> None:
    maps = torch.arange(32.0).reshape(1, 2, 4, 4)
    head = PooledLinear(2, 3)
    head.divide(Squares.of((4, 4), (2, 2)))
    assert head.pooled(maps).tolist() == [[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]
    assert head(head.pooled(maps)).shape == (1, 3)


def test_a_square_at_the_edge_is_the_mean_of_what_it_has() -> None:
    maps = torch.arange(15.0).reshape(1, 1, 3, 5)
    head = PooledLinear(1, 2)
    head.divide(Squares.of((3, 5), (2, 2)))
    assert head.squares == Squares((2, 2), 6)
    assert head.pooled(maps).tolist() == [[3.0, 5.0, 6.5, 10.5, 12.5, 14.0]]


@pytest.mark.parametrize(
    ("size", "side", "squares"),
    [
        ((32, 32), (8, 8), Squares((8, 8), 16)),
        ((16, 16), (8, 8), Squares((8, 8), 4)),
        ((8, 8), (8, 8), Squares((8, 8), 1)),
        ((1, 4), (6, 6), Squares((1, 4), 1)),
        ((9, 16), (5, 8), Squares((5, 8), 4)),
    ],
)
def test_squares_are_counted_and_not_larger_than_the_map(
    size: tuple[int, int], side: tuple[int, int], squares: Squares
) -> None:
    assert Squares.of(size, side) == squares


def test_preactivated_maps_are_rectified_before_they_are_divided() -> None:
    head = PreactivatedPooledLinear(1, 3).eval()
    head.divide(Squares.of((2, 2), (1, 2)))
    maps = torch.tensor([[[[-1.0, 3.0], [-2.0, -4.0]]]])
    torch.testing.assert_close(head.pooled(maps), torch.tensor([[1.5, 0.0]]), atol=1e-4, rtol=0)


def test_class_token_is_normalised_after_pooling() -> None:
    tokens = torch.tensor([[[10.0, 30.0], [7.0, 7.0]]])
    head = ClassTokenLinear(2, 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(2))
        head.linear.bias.zero_()
    assert head.pooled(tokens).tolist() == [[10.0, 30.0]]
    torch.testing.assert_close(head(head.pooled(tokens)), torch.tensor([[-1.0, 1.0]]))

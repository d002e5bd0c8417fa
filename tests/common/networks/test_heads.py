import torch

from common.networks.heads import ClassTokenLinear, PooledLinear, PreactivatedPooledLinear


def test_maps_are_averaged() -> None:
    maps = torch.arange(8.0).reshape(1, 2, 2, 2)
    head = PooledLinear(2, 3)
    assert head.pooled(maps).tolist() == [[1.5, 5.5]]
    assert head(head.pooled(maps)).shape == (1, 3)


def test_preactivated_map_is_rectified_before_averaging() -> None:
    head = PreactivatedPooledLinear(1, 3).eval()
    torch.testing.assert_close(head.pooled(torch.tensor([[[[-1.0, 3.0]]]])), torch.tensor([[1.5]]), atol=1e-4, rtol=0)


def test_class_token_is_normalised_after_pooling() -> None:
    tokens = torch.tensor([[[10.0, 30.0], [7.0, 7.0]]])
    head = ClassTokenLinear(2, 2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(2))
        head.linear.bias.zero_()
    assert head.pooled(tokens).tolist() == [[10.0, 30.0]]
    torch.testing.assert_close(head(head.pooled(tokens)), torch.tensor([[-1.0, 1.0]]))

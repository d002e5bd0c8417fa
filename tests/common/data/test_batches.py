import torch

from common.data.batches import batches
from common.seeding import generator


def _sizes(num_samples: int, batch_size: int) -> list[int]:
    return [len(batch) for batch in batches(num_samples, batch_size, generator(0))]


def test_batches_have_equal_sizes_and_never_one_sample() -> None:
    assert _sizes(50, 16) == [13, 13, 12, 12]
    assert _sizes(10, 4) == [4, 3, 3]
    assert _sizes(8, 4) == [4, 4]
    assert _sizes(5, 4) == [3, 2]
    assert _sizes(5, 2) == [3, 2]


def test_batches_of_very_few_samples() -> None:
    assert _sizes(0, 4) == []
    assert _sizes(1, 4) == [1]
    assert _sizes(3, 1) == [1, 1, 1]


def test_each_sample_comes_once_in_an_order_of_the_seed() -> None:
    once, again, other = (torch.cat(batches(50, 8, generator(seed))) for seed in (1, 1, 2))
    assert sorted(once.tolist()) == list(range(50))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert once.dtype == torch.int64

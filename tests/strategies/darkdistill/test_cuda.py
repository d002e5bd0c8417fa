"""The server's transfer gives the same losses on a GPU and on the CPU, up to float32 rounding."""

import pytest
import torch

from benchmarks.distillation import SIZES, Server, agreement, largest_difference, losses

CPU = torch.device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
@pytest.mark.parametrize("size", ["demo", "cifar10"])
def test_cuda_losses_agree_with_cpu_losses(size):
    assert agreement(SIZES[size], torch.device("cuda"), epochs=1, steps=1) < 0.01


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
def test_cuda_losses_repeat_bit_for_bit():
    one, two = (losses(SIZES["demo"], torch.device("cuda"), 2, 2) for _ in range(2))
    assert one == two


def test_steps_of_one_kind_can_be_timed():
    server = Server(SIZES["demo"], CPU)
    assert [len(server.transfer(1, *steps).generators) for steps in ((1, 0), (0, 1))] == [1, 0]
    assert [len(server.transfer(1, *steps).distillation) for steps in ((1, 0), (0, 1))] == [0, 1]


def test_agreement_is_zero_for_equal_seeds_and_sees_a_difference():
    found = losses(SIZES["demo"], CPU, 1, 2)
    # 4 tiers of 3 terms; 2 steps of a total and of distance and angle for 2 + 3 + 4 student exits
    assert len(found) == 4 * 3 + 2 * (1 + 2 * (2 + 3 + 4))
    assert agreement(SIZES["demo"], CPU) == 0.0
    assert largest_difference([1.0, 2.0], [1.0, 1.5]) == pytest.approx(0.25)

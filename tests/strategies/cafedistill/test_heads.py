import numpy as np
import pytest
import torch

from common.networks import NetworkSpec, build
from strategies.cafedistill.heads import head_bias, head_layout, head_state, head_vector, with_parameters


@pytest.fixture
def network():
    return build(NetworkSpec("lenet", 10, (1, 8, 8), width=3), seed=1)


def test_head_layout_lists_the_parameters_of_the_exit(network):
    layout = head_layout(network, 2)
    assert layout.floats == (("exits.2.linear.weight", (10, 8)), ("exits.2.linear.bias", (10,)))
    assert layout.counters == ()
    wide = build(NetworkSpec("wrn16", 10, (1, 8, 8), width=1), seed=1)
    keys = head_layout(wide, wide.exit_positions[-1]).keys
    assert {key.split(".", 2)[2] for key in keys} == {"norm.weight", "norm.bias", "linear.weight", "linear.bias"}


def test_head_vector_and_head_state_are_inverse(network):
    layout, state = head_layout(network, 3), network.state_dict()
    vector = head_vector(state, layout)
    assert vector.shape == (layout.sizes[0],) == (610,)
    back = head_state(vector, layout)
    assert all(torch.equal(back[key], state[key]) for key in layout.keys)
    from_wire = head_state(vector.numpy(), layout)
    assert all(torch.equal(from_wire[key], state[key]) for key in layout.keys)
    assert torch.equal(head_bias(vector, layout), state["exits.3.linear.bias"])


def test_head_vector_is_a_copy(network):
    layout = head_layout(network, 3)
    before = head_vector(network.state_dict(), layout)
    with torch.no_grad():
        network.exits["3"].linear.weight.add_(1)
    assert not torch.equal(head_vector(network.state_dict(), layout), before)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(609, np.float32), np.zeros((1, 610), np.float32), np.float32(0), np.zeros(610),
        np.zeros(610, np.int64), np.full(610, "x"), np.full(610, np.datetime64("2026-01-01")), np.zeros(610, ">f4"),
        torch.zeros(610, dtype=torch.float64),
    ],
    ids=lambda wrong: f"{wrong.dtype} {tuple(wrong.shape)}",
)  # fmt: skip
def test_head_state_rejects_other_shapes_and_types(network, wrong):
    with pytest.raises(ValueError, match="an exit head of 610 float32 parameters was expected"):
        head_state(wrong, head_layout(network, 3))


def test_with_parameters_returns_a_frozen_copy(network):
    layout, head = head_layout(network, 2), network.head(2)
    before = head.linear.weight.detach().clone()
    vector = np.arange(90, dtype=np.float32)
    other = with_parameters(head, vector, layout)
    assert torch.equal(other.linear.weight, torch.arange(80.0).view(10, 8))
    assert torch.equal(other.linear.bias, torch.arange(80.0, 90.0))
    assert not any(parameter.requires_grad for parameter in other.parameters())
    vector[:] = 0
    assert other.linear.bias[0] == 80
    assert all(parameter.requires_grad for parameter in head.parameters())
    assert torch.equal(head.linear.weight, before)

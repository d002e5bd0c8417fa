from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build, cost_table

TINY = NetworkSpec("transformer4", 4, (8,), width=16, vocabulary=30)
TEXTS = torch.tensor([[3, 9, 4, 0, 0, 0, 0, 0], [7, 7, 1, 2, 29, 5, 6, 8], [0] * 8])


def test_default_matches_the_published_network():
    network = build(NetworkSpec("transformer4", 4, (200,), vocabulary=32_000), 0)
    assert network.exit_positions == (2, 3, 4, 5)
    assert network.latent_shape == (201, 192)
    blocks = [network.units[str(index)] for index in range(1, 5)]
    assert {block.num_heads for block in blocks} == {2}
    assert {block.mlp[0].out_features for block in blocks} == {768}
    assert sum(p.numel() for p in network.units["0"].parameters()) == 192 * (32_000 + 1 + 201)
    with pytest.raises(UserError, match=r"network\.width is 15, must be a multiple of transformer4's 2"):
        build(replace(TINY, width=15), 0)


@torch.no_grad()
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_padding_changes_nothing(lora_rank):
    """The same text in a longer window gives the same logits, to rounding: other sizes change the order of sums."""
    spec = replace(TINY, lora_rank=lora_rank)
    short, long = build(replace(spec, input_shape=(3,)), 0).eval(), build(spec, 0).eval()
    weights = dict(long.state_dict())
    weights["units.0.positions"] = weights["units.0.positions"][:, :4]
    short.load_state_dict(weights)
    for one, other in zip(short(TEXTS[:1, :3]), long(TEXTS[:1]), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@torch.no_grad()
def test_padding_is_zero_in_every_unit_and_tokens_are_not():
    network = build(TINY, 0).eval()
    present = torch.cat([torch.ones(3, 1, dtype=torch.bool), TEXTS != 0], dim=1)
    for cut in range(1, 6):
        assert torch.equal(network.features_at(TEXTS, cut).any(dim=-1), present)


def test_padding_gets_no_gradient_and_empty_text_is_finite():
    network = build(TINY, 0)
    logits = network(TEXTS)
    assert all(exit_.isfinite().all() for exit_ in logits)
    sum(exit_[[0, 2]].sum() for exit_ in logits).backward()
    embedding = network.units["0"]
    assert embedding.tokens.weight.grad.any(dim=1).nonzero().flatten().tolist() == [3, 4, 9]
    assert embedding.positions.grad[0].any(dim=1).tolist() == [True] * 4 + [False] * 5


@torch.no_grad()
def test_logits_depend_on_every_token_and_their_order():
    network = build(TINY, 0).eval()
    changed = TEXTS[1:2].clone()
    changed[0, 7] = 9
    swapped = TEXTS[1:2].flip(1)
    original = network(TEXTS[1:2])[-1]
    assert not torch.allclose(network(changed)[-1], original, atol=1e-4)
    assert not torch.allclose(network(swapped)[-1], original, atol=1e-4)


def test_costs_match_a_count_by_hand():
    table = cost_table(build(TINY, 0))
    tokens, width = 9, 16
    assert table.units[0].macs == 0
    assert table.units[1].macs == tokens * 12 * width**2 + 2 * tokens**2 * width
    assert table.units[1].activation_bytes == 4 * tokens * width


def test_blank_inputs_are_texts():
    blank = build(TINY, 0).example(2)
    assert (blank.dtype, blank.tolist()) == (torch.int64, [[1] * 8] * 2)
    images = build(NetworkSpec("lenet", 4, (1, 8, 8)), 0).example(2)
    assert (images.dtype, tuple(images.shape), images.any().item()) == (torch.float32, (2, 1, 8, 8), False)

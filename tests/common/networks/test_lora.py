from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.networks import NetworkSpec, build
from common.networks.lora import AdaptedAttention

VIT = NetworkSpec("vit_small32", 3, (3, 8, 8))
ADAPTED = replace(VIT, lora_rank=2)


def adapted_attention(width: int = 8, rank: int = 2) -> tuple[torch.nn.MultiheadAttention, AdaptedAttention]:
    torch.manual_seed(0)
    attention = torch.nn.MultiheadAttention(width, 2, batch_first=True)
    return attention, AdaptedAttention(attention, rank).eval()


def test_new_adapter_changes_nothing() -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for plain, adapted in zip(build(VIT, 1)(x), build(ADAPTED, 1)(x), strict=True):
        torch.testing.assert_close(adapted, plain)


def test_adapters_add_twice_up_times_down_to_query_and_value() -> None:
    attention, adapted = adapted_attention()
    x = torch.randn(2, 5, 8)
    torch.nn.init.normal_(adapted.query_adapter.up.weight)
    torch.nn.init.normal_(adapted.value_adapter.up.weight)
    got, _ = adapted(x, x, x, need_weights=False)
    with torch.no_grad():
        attention.in_proj_weight[:8] += 2 * adapted.query_adapter.up.weight @ adapted.query_adapter.down.weight
        attention.in_proj_weight[16:] += 2 * adapted.value_adapter.up.weight @ adapted.value_adapter.down.weight
    want, _ = attention(x, x, x, need_weights=False)
    torch.testing.assert_close(got, want)


def test_dropout_acts_only_in_training() -> None:
    _, adapted = adapted_attention()
    torch.nn.init.normal_(adapted.query_adapter.up.weight)
    x = torch.randn(8, 50, 8)
    assert torch.equal(adapted.query_adapter(x), adapted.query_adapter(x))
    adapted.train()
    assert not torch.equal(adapted.query_adapter(x), adapted.query_adapter(x))


def test_only_adapters_and_heads_are_trained() -> None:
    network = build(ADAPTED, 1)
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == ("_adapter." in name or name.startswith("exits.")), name
    trained = sum(p.numel() for p in network.units.parameters() if p.requires_grad)
    assert trained == 12 * 2 * 2 * (2 * 64)


def test_adapted_trunk_keeps_its_names() -> None:
    assert set(build(VIT, 1).state_dict()) < set(build(ADAPTED, 1).state_dict())


def test_network_without_attention_is_refused() -> None:
    with pytest.raises(UserError, match=r"network\.lora-rank is 4, but this network has no attention"):
        build(NetworkSpec("lenet", 3, (1, 8, 8), lora_rank=4), 0)

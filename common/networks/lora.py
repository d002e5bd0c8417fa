"""Low-rank adapters on attention's query and value (Hu et al., ICLR 2022), as DarkDistill trains them."""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import EncoderBlock

from common.errors import UserError
from common.networks.base import EarlyExitNetwork
from common.seeding import seeded

DROPOUT = 0.01
SCALE = 2.0  # alpha / rank, with alpha = 2 rank


class Adapter(nn.Module):
    """x -> SCALE * up(down(dropout(x))), initially zero."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for x (B, T, D)."""
        dropped = functional.dropout(x, DROPOUT, self.training)
        return SCALE * cast(Tensor, self.up(self.down(dropped)))


class AdaptedAttention(nn.Module):
    """Self-attention with adapters; takes over the parameters of a MultiheadAttention under their names."""

    def __init__(self, attention: nn.MultiheadAttention, rank: int) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.in_proj_weight = attention.in_proj_weight
        self.in_proj_bias = attention.in_proj_bias
        self.out_proj = attention.out_proj
        self.query_adapter = Adapter(attention.embed_dim, rank)
        self.value_adapter = Adapter(attention.embed_dim, rank)

    def forward(
        self, x: Tensor, key: Tensor, value: Tensor, need_weights: bool, key_padding_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Return (B, T, D) for x (B, T, D); an EncoderBlock also passes x as key and value, and need_weights.

        `key_padding_mask`: bool (B, T), positions that no token attends to.
        """
        queries, keys, values = functional.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        queries = queries + self.query_adapter(x)
        values = values + self.value_adapter(x)
        heads = [tensor.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for tensor in (queries, keys, values)]
        mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None]
        attended = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


def add_adapters(network: EarlyExitNetwork, rank: int, seed: int) -> None:
    """Add adapters to every attention of a network, in place; only they and the exit heads stay trainable.

    Args:
        network: of transformer blocks.
        rank: r; alpha is 2r, dropout 0.01.
        seed: of the adapters' first weights, which leave the network's output unchanged.

    Raises:
        UserError: the network has no attention.
    """
    blocks = [unit for unit in network.units.values() if isinstance(unit, EncoderBlock)]
    if not blocks:
        raise UserError(
            f"network.lora-rank is {rank}, but this network has no attention: set it to 0 or choose a transformer "
            "(deit_tiny, vit_small32)"
        )
    for parameter in network.units.parameters():
        parameter.requires_grad_(False)
    with seeded("adapters", seed):
        for block in blocks:
            block.self_attention = AdaptedAttention(block.self_attention, rank)

"""A small transformer for texts, trained from scratch (CAFEDistill, Liu et al., arXiv 2601.10015: AG News).

Token and position embeddings, then four pre-norm blocks with an exit on the class token after each. The output of
every unit is the zero vector at padding positions. A block therefore sees from its input alone which positions hold no
token, masks them in attention and leaves them zero. Only the tensor travels between units or machines, and a text's
logits do not depend on its padding. A token's own vector is never exactly zero.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.vision_transformer import EncoderBlock

from common.data.text import PADDING
from common.errors import UserError
from common.networks.base import Trunk
from common.networks.heads import ClassTokenLinear

BLOCKS = 4
HEADS = 2
WIDTH = 192


class TokenEmbedding(nn.Module):
    """Tokens as vectors, the class token in front, positions added; zero vectors for padding."""

    def __init__(self, length: int, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + length, width).normal_(std=0.02))

    def forward(self, ids: Tensor) -> Tensor:
        """Return vectors (B, 1 + L, D) of token ids (B, L), int64."""
        x = torch.cat([self.class_token.expand(ids.shape[0], -1, -1), self.tokens(ids)], dim=1) + self.positions
        absent = functional.pad(ids == PADDING, (1, 0))
        return x.masked_fill(absent.unsqueeze(-1), 0.0)


class MaskedEncoderBlock(EncoderBlock):
    """An encoder block that neither reads nor writes the positions whose vector is zero."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, D) for x (B, T, D)."""
        absent = ~x.any(dim=-1)
        normed = self.ln_1(x)
        attended, _ = self.self_attention(normed, normed, normed, key_padding_mask=absent, need_weights=False)
        x = x + self.dropout(attended)
        x = x + self.mlp(self.ln_2(x))
        return x.masked_fill(absent.unsqueeze(-1), 0.0)


def transformer4(length: int, vocabulary: int, width: int) -> Trunk:
    """Return the transformer for texts of `length` tokens: embeddings of 192, two heads, hidden layers of 4 widths.

    Raises:
        UserError: the width is not a multiple of the heads.
    """
    width = width or WIDTH
    if width % HEADS:
        raise UserError(f"network.width is {width}, must be a multiple of transformer4's {HEADS} attention heads")
    units: list[nn.Module] = [TokenEmbedding(length, vocabulary, width)]
    for _ in range(BLOCKS):
        units.append(MaskedEncoderBlock(HEADS, width, 4 * width, dropout=0.0, attention_dropout=0.0))
    return Trunk(
        units,
        (width,) * len(units),
        ClassTokenLinear,
        latent_shape=(1 + length, width),
    )

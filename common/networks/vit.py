"""Vision transformers (Dosovitskiy et al., ICLR 2021; DeiT, Touvron et al., ICML 2021).

Exits stand after blocks 3, 6, 9 and 12, each a LayerNorm and a linear layer on the class token. The trunk has no pooler
and no final norm (DarkDistill, KDD 2025).
"""

import math

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

from common.errors import UserError
from common.networks.base import Trunk
from common.networks.heads import ClassTokenLinear

BLOCKS = 12


class PatchEmbedding(nn.Module):
    """Patches as tokens, the class token in front, positions added."""

    def __init__(self, input_shape: tuple[int, int, int], patch: int, width: int) -> None:
        super().__init__()
        channels, height, breadth = input_shape
        self.grid = (height // patch, breadth // patch)
        self.projection = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + math.prod(self.grid), width).normal_(std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, 1 + patches, D) of images (B, C, H, W)."""
        patches = self.projection(x).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions


def deit_tiny(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return DeiT-tiny: patches of 16, embeddings of 192, heads of 64 (width 384 gives DeiT-small).

    Raises:
        UserError: image or width is not a multiple of the patch or the head.
    """
    return _trunk("deit_tiny", input_shape, patch=16, width=width or 192, head_width=64)


def vit_small32(input_shape: tuple[int, int, int], width: int) -> Trunk:
    """Return a small transformer for small images: patches of 4, embeddings of 64, heads of 16.

    Raises:
        UserError: image or width is not a multiple of the patch or the head.
    """
    return _trunk("vit_small32", input_shape, patch=4, width=width or 64, head_width=16)


def _trunk(name: str, input_shape: tuple[int, int, int], patch: int, width: int, head_width: int) -> Trunk:
    _, height, breadth = input_shape
    if height % patch or breadth % patch:
        raise UserError(
            f"images of {height}x{breadth} do not fit {name}: its patches are {patch}x{patch}, "
            f"set data.image-size to a multiple"
        )
    if width % head_width:
        raise UserError(f"network.width is {width}, must be a multiple of {name}'s attention heads of {head_width}")
    embedding = PatchEmbedding(input_shape, patch, width)
    units: list[nn.Module] = [embedding]
    for _ in range(BLOCKS):
        units.append(EncoderBlock(width // head_width, width, 4 * width, dropout=0.0, attention_dropout=0.0))
    return Trunk(
        units,
        (width,) * len(units),
        ClassTokenLinear,
        latent_shape=(embedding.positions.shape[1], width),
    )

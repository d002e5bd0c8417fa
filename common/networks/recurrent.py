"""One classifier for all exits, which sees the tokens of the exits before it too: ReeFL's Ree module.

Source: Lee et al., "Recurrent Early Exits for Federated Learning with Heterogeneous Clients", ICML 2024 (arXiv
2405.14791): a transformer block over a meta token and the history of class tokens, shared by all sub-models. That the
last token is added to the meta token before the classifier is a detail of the authors' code.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.vision_transformer import EncoderBlock

HEADS = 4  # of its attention; the width of the tokens is a multiple


class RecurrentExit(nn.Module):
    """A transformer block over a meta token and the exits' tokens, then LayerNorm and a linear classifier.

    It is `recurrent` in a network whose exit heads make tokens (B, width) instead of logits. Every part that has an
    exit holds all of it, under the same names.
    """

    def __init__(self, width: int, exits: int, num_classes: int) -> None:
        """`exits` is the number of exits of the whole network."""
        super().__init__()
        self.meta = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.positions = nn.Parameter(torch.empty(1, 1 + exits, width).normal_(std=0.02))
        self.block = EncoderBlock(HEADS, width, 2 * width, dropout=0.0, attention_dropout=0.0)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, classes) of the last of these exits, whose tokens (B, exits so far, width) are given.

        Classified is the meta token after the block, plus the last exit's own token.
        """
        meta = self.meta.expand(tokens.shape[0], -1, -1)  # not len(): torch.export would fix the batch's size
        x = torch.cat([meta, tokens], dim=1) + self.positions[:, : 1 + tokens.shape[1]]
        return cast(Tensor, self.linear(self.norm(self.block(x)[:, 0] + tokens[:, -1])))

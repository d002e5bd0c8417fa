"""The last layer, cut into column blocks, so that students which stop at different exits still add up to logits.

    Z = mean_k b^(j_k) + sum_k W_k^(j_k) F_{k, j_k}

With all students at the same exit j this is the joint model's Z = b^(j) + W^(j) concat_k F_{k,j} (DistrEE,
arXiv 2502.15735; one layer per exit, as reconstructed). A student's own heads take no part in the answer: by them a
device alone decides where a sample leaves.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.seeding import seeded


def logits_at(layers: tuple[Tensor, Tensor], exit_index: int, features: Tensor) -> Tensor:
    """Return the logits (b, classes) of one student's features (b, |P_k|) at an exit (from 0).

    `layers` are the weights (J, classes, |P_k|) and biases (J, classes) of its own heads, or of its columns.
    """
    weights, biases = layers
    return features @ weights[exit_index].T + biases[exit_index]


class ColumnBlocks(nn.Module):
    """One linear layer per exit over the concatenated features, stored as a block of columns per student."""

    def __init__(self, sizes: Mapping[int, int], num_exits: int, num_classes: int, seed: int) -> None:
        """Draw the weights from the seed; `sizes`: student -> length |P_k| of its features."""
        super().__init__()
        self.num_exits, self.num_classes = num_exits, num_classes
        with seeded("column blocks", seed):
            layers = [nn.Linear(sum(sizes.values()), num_classes) for _ in range(num_exits)]
        weight = torch.stack([layer.weight.detach() for layer in layers])
        columns = weight.split(list(sizes.values()), dim=2)
        # student -> (J, classes, |P_k|)
        self.blocks = nn.ParameterDict({str(k): b.clone() for k, b in zip(sizes, columns, strict=True)})
        self.bias = nn.Parameter(torch.stack([layer.bias.detach() for layer in layers]))  # (J, classes)

    def forward(self, features: Mapping[int, Tensor], exit_index: int) -> Tensor:
        """Return logits (B, classes) of features (B, |P_k|) per student, all from exit `exit_index` (from 0)."""
        return self.bias[exit_index] + torch.stack(
            [value @ self.blocks[str(k)][exit_index].T for k, value in sorted(features.items())]
        ).sum(0)

    def combine(self, features: Mapping[int, Tensor], exits: Mapping[int, Tensor]) -> Tensor:
        """Return logits (B, classes) of students that stop at exits of their own.

        Args:
            features: student -> F_{k, j_k} (B, |P_k|).
            exits: student -> j_k from 0, int64 (B,).
        """
        numbers = sorted(features)
        parts = [(self.blocks[str(k)][exits[k]] @ features[k][:, :, None]).squeeze(2) for k in numbers]
        biases = torch.stack([self.bias[exits[k]] for k in numbers])
        return biases.mean(0) + torch.stack(parts).sum(0)


class OwnHeads(nn.Module):
    """One linear classifier per exit and student, over that student's features alone. Ours, not the paper's."""

    def __init__(self, sizes: Mapping[int, int], num_exits: int, num_classes: int) -> None:
        """Start at 0, from where a linear classifier learns as from anywhere; `sizes`: student -> |P_k|."""
        super().__init__()
        # student -> (J, classes, |P_k|), and (J, classes)
        self.weights = nn.ParameterDict({str(k): torch.zeros(num_exits, num_classes, n) for k, n in sizes.items()})
        self.biases = nn.ParameterDict({str(k): torch.zeros(num_exits, num_classes) for k in sizes})

    def forward(self, number: int, features: Sequence[Tensor]) -> Tensor:
        """Return the logits (J, B, classes) of a student's features (B, |P_k|) of all exits."""
        stacked = torch.stack(list(features))
        return stacked @ self.weights[str(number)].transpose(1, 2) + self.biases[str(number)][:, None]

    def only(self, number: int) -> "OwnHeads":
        """Return a copy that holds one student's heads."""
        num_exits, num_classes, size = self.weights[str(number)].shape
        copy = OwnHeads({number: size}, num_exits, num_classes)
        copy.load_state_dict({key: value for key, value in self.state_dict().items() if key.endswith(f".{number}")})
        return copy

"""Similarities of clients: cosines of their last heads (CAFEDistill, Liu et al., arXiv 2601.10015, section 4).

A head's vector is its change in one round of training (before - after), or its parameters. Clients that are not in the
same round keep their last similarity; for clients that never were, it is 0.

Our extension: the last heads of clients of unequal depth have different inputs and cannot be compared, but the changes
of their biases can. A bias changes by lr * sum_b (softmax(z_b) - onehot(y_b)): the client's mix of labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from common.weights.flat import StateDict


@dataclass(frozen=True)
class LastHead:
    """The values of a client's last head that are compared."""

    depth: int
    vector: Tensor  # (P,), the whole head
    bias: Tensor  # (C,), the part of it that is the classifier's bias


def cosines(vectors: Tensor) -> Tensor:
    """Return all cosines `(n, n)` float64 of n vectors `(n, P)`; those of a zero vector are 0."""
    norms = torch.linalg.vector_norm(vectors.double(), dim=1, keepdim=True)
    unit = vectors.double() / torch.where(norms > 0, norms, 1.0)
    return (unit @ unit.T).clamp(-1, 1)


class Similarities:
    """Symmetric similarities, kept only for pairs of clients that were in the same round."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[int, int], float] = {}  # (i, j) with i < j

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self._pairs)

    def update(self, heads: Mapping[int, LastHead], *, across_depths: bool = False) -> None:
        """Set the similarity of every comparable pair of a round's clients.

        Args:
            heads: by client.
            across_depths: also compare clients of unequal depth, by their biases.
        """
        if across_depths and heads:
            self._set({client: head.bias for client, head in heads.items()})
        for depth in {head.depth for head in heads.values()}:
            self._set({client: head.vector for client, head in heads.items() if head.depth == depth})

    def matrix(self, clients: Sequence[int]) -> Tensor:
        """Return the similarities `(n, n)` float64 of these clients, in their order: unknown 0, diagonal 1."""
        rows = [[1.0 if i == j else self._pairs.get((min(i, j), max(i, j)), 0.0) for j in clients] for i in clients]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(clients), len(clients))

    def state(self) -> StateDict:
        """Return `pairs` (P, 2) int64, sorted, and their `values` (P,) float64."""
        pairs = sorted(self._pairs)
        return {
            "pairs": torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            "values": torch.tensor([self._pairs[pair] for pair in pairs], dtype=torch.float64),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the result of `state`; replaces all pairs."""
        pairs, values = state["pairs"].tolist(), state["values"].tolist()
        self._pairs = {(i, j): value for (i, j), value in zip(pairs, values, strict=True)}

    def _set(self, vectors: Mapping[int, Tensor]) -> None:
        clients = sorted(vectors)
        table = cosines(torch.stack([vectors[client] for client in clients])).tolist()
        for a, b in combinations(range(len(clients)), 2):
            self._pairs[clients[a], clients[b]] = table[a][b]

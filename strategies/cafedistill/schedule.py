"""Progressive, depth-prioritised student selection (CAFEDistill, Liu et al., arXiv 2601.10015, section 4).

Last exits are teachers in every round. The others are students; they are admitted during the first half of the rounds:

1. A share R(t) = min(2t/T, 1) of all student exits of the round's clients is admitted (`admitted_by` 1/2).
2. Depth first: the shallowest student of every client, then the next one, and so on.
3. Inside the depth that is only partly filled: similar clients, chosen greedily.

Published code instead gives a partly filled depth to the clients with the least negative similarities; without
negative ones, as in the first rounds, it picks arbitrary indices.

Our extension: clients of unequal depth. A client with fewer exits has fewer levels and skips the deeper ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor


def quota(
    round_: int, rounds: int, students: Mapping[int, int], conflict: float = 0.0, admitted_by: float = 0.5
) -> int:
    """Return how many student exits are admitted in total.

    With equal depths m and n clients this is floor((m - 1) n min(2t/T, 1)); with a conflict it is the published code's
    floor(m n clip(2t/T (1 - 1/m) + conflict, 0, 1 - 1/m)).

    Args:
        round_: t, counted from 0.
        rounds: T, of the whole run.
        students: by client of the round, its exits but the last one.
        conflict: the `mean_conflict` of the round's clients, or 0.
        admitted_by: the share of the rounds after which all are admitted.
    """
    total = sum(students.values())
    exits = total + len(students)
    share = round_ / (admitted_by * rounds)
    # the tiny addend keeps a whole number whole in floating point
    return math.floor(min(max(share * total + exits * conflict + 1e-9, 0), total))


def mean_conflict(similarities: Tensor) -> float:
    """Return the mean over all n^2 entries of min(Sim, 0), which is in -1..0, of similarities `(n, n)`."""
    return similarities.clamp(max=0).mean().item()


def choose(similarities: Tensor, count: int, rng: torch.Generator) -> list[int]:
    """Return the indices of `count` similar clients, in the order in which they are chosen.

    The first one is random; each next one has the highest mean similarity to those already chosen. Ties are random too.

    Args:
        similarities: `(n, n)`.
        count: 0..n.
        rng: draws one permutation of the clients, which sets the first one and breaks ties.
    """
    order = torch.randperm(len(similarities), generator=rng)
    shuffled = similarities[order][:, order]
    chosen: list[int] = []
    closeness = torch.zeros(len(order), dtype=shuffled.dtype)  # sum of similarities to the chosen ones
    for _ in range(count):
        best = int(closeness.argmax())  # the first of equals
        chosen.append(best)
        closeness += shuffled[best]
        closeness[best] = -math.inf
    return order[chosen].tolist()


def select(
    admitted: int,
    levels: Mapping[int, int],
    students: Mapping[int, int],
    similarities: Callable[[Sequence[int]], Tensor],
    rng: torch.Generator,
) -> dict[int, int]:
    """Return each client's number of unlocked students k_i, in client order; exits 0..k_i - 1 learn.

    A client that is not chosen for the partly filled level stays at the last full level. While level 0 itself is only
    partly filled, every client keeps what was unlocked before.

    Args:
        admitted: the `quota` of the round.
        levels: k_i by client as of its last round; 0 if absent.
        students: by client of the round, its exits but the last one.
        similarities: clients -> `(n, n)`, in their order; called at most once.
        rng: sets the first client of a partly filled level and breaks ties.
    """
    unlocked = {client: min(levels.get(client, 0), students[client]) for client in sorted(students)}
    for level in range(max(students.values(), default=0)):
        candidates = [client for client in unlocked if students[client] > level]
        if admitted < len(candidates):
            picked = choose(similarities(candidates), admitted, rng) if admitted else []
            for client in (candidates[index] for index in picked):
                unlocked[client] = max(unlocked[client], level + 1)
            break
        unlocked = {client: min(students[client], level + 1) for client in unlocked}
        admitted -= len(candidates)
    return unlocked

"""NoNN's partition: which of the teacher's last filters each student imitates.

Two filters that fire together with unequal strength are linked, so a community mixes strong and weak filters and no
student gets all the important ones. Source: Bhardwaj et al., ACM TECS 18(5s), 2019, arXiv 1907.11804, and the released
code; DistrEE (arXiv 2502.15735) applies it to K students. Differences from that code, which works for two students:
only filters without a link are dropped, not the largest cluster; communities are packed by size; the seed is fixed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.settings import DistrEESettings

Community = tuple[int, ...]  # filters, ascending

LINKS_AT_ONCE = 2**21  # pairs of filters held in memory, 8 bytes each
RESOLUTION_STEP = 1.5
RESOLUTION_STEPS = 5  # up to 7.6 times the configured resolution; then communities are split
FEWEST = 2  # filters of a student: networks need two outputs


def shares_of_largest(activations: Tensor) -> Tensor:
    """Return activations (N, D) clipped at 0 and divided by the largest of their image, float64 on the CPU.

    Images without any activation are left out.
    """
    clipped = activations.detach().to("cpu", torch.float64).clamp_min(0)
    largest = clipped.amax(1, keepdim=True)
    seen = largest[:, 0] > 0
    return clipped[seen] / largest[seen]


def link_weights(activations: Tensor, top: int) -> Tensor:
    """Return W (D, D), float64, symmetric: the sum over images and pairs of their `top` filters of a a' |a - a'|.

    Args:
        activations: mean of each filter of the last convolution over its map, (N, D); see `shares_of_largest`.
        top: number of an image's strongest filters that are linked; of equal filters, the first.
    """
    filters = activations.shape[1]
    strongest, which = shares_of_largest(activations).sort(dim=1, descending=True, stable=True)
    strongest, which = strongest[:, :top], which[:, :top]
    weights = torch.zeros(filters * filters, dtype=torch.float64)
    images = max(1, LINKS_AT_ONCE // strongest.shape[1] ** 2)
    for a, c in zip(strongest.split(images), which.split(images), strict=True):
        first, second = a[:, :, None], a[:, None, :]
        pairs = c[:, :, None] * filters + c[:, None, :]
        weights.index_add_(0, pairs.flatten(), (first * second * (first - second).abs()).flatten())
    return weights.view(filters, filters)


def filter_graph(weights: Tensor, kept_edges: float) -> nx.Graph:
    """Return the graph of all D filters with the strongest links, as weights from 0 to 1.

    Args:
        weights: W (D, D).
        kept_edges: share of W's non-zero entries that stay: those at or above their (1 - kept_edges) quantile.
    """
    graph = nx.Graph()
    graph.add_nodes_from(range(len(weights)))
    largest = weights.max()
    if largest <= 0:
        return graph
    normal = (weights / largest).numpy()
    least = np.percentile(normal[normal > 0], 100 * (1 - kept_edges))
    rows, columns = np.nonzero(np.triu((normal >= least) & (normal > 0), k=1))
    for one, other in zip(rows.tolist(), columns.tolist(), strict=True):
        graph.add_edge(one, other, weight=float(normal[one, other]))
    return graph


def communities(graph: nx.Graph, resolution: float, seed: int) -> list[Community]:
    """Return Louvain's communities of the filters that have a link, the largest first, then by first filter.

    Args:
        graph: see `filter_graph`.
        resolution: gamma of the modularity; a higher one gives more and smaller communities.
        seed: of the order in which Louvain visits the filters.
    """
    found = nx.community.louvain_communities(_linked(graph), weight="weight", resolution=resolution, seed=seed)
    return _largest_first(tuple(sorted(community)) for community in found)


def pack(found: Sequence[Community], shares: Sequence[float]) -> tuple[Community, ...]:
    """Return each student's filters: the largest community left goes to the student with the fewest for its share.

    Longest processing time first (Graham, 1969); between equals, the student with the larger share, then the first.
    With at least as many communities as students, every student gets one.
    """
    parts: list[list[int]] = [[] for _ in shares]
    for community in _largest_first(found):
        poorest = min(range(len(shares)), key=lambda k: (len(parts[k]) / shares[k], -shares[k], k))
        parts[poorest] += community
    return tuple(tuple(sorted(part)) for part in parts)


def split(community: Community, totals: Tensor) -> tuple[Community, Community]:
    """Return the community's filters of odd and of even rank by total activation (D,): halves of similar strength."""
    ranked = sorted(community, key=lambda f: (-float(totals[f]), f))
    return tuple(sorted(ranked[::2])), tuple(sorted(ranked[1::2]))


@dataclass(frozen=True)
class Partition:
    """The filters that each student imitates, and how they were found."""

    parts: tuple[Community, ...]  # one per student, disjoint
    dropped: Community  # filters without a strong link, which no student imitates
    communities: tuple[int, ...]  # sizes of the packed communities, largest first
    modularity: float  # of those communities in the graph, at resolution 1
    activation: tuple[float, ...]  # one per student: its filters' share of the total activation of all filters
    notes: tuple[str, ...] = ()  # steps that were needed so that every student gets its share

    def __post_init__(self) -> None:
        filters = [f for part in (*self.parts, self.dropped) for f in part]
        if len(set(filters)) != len(filters):
            raise ValueError("students would imitate the same filters: parts overlap")

    def report(self) -> list[str]:
        """Return lines for the user that describe the partition."""
        used = sum(map(len, self.parts))
        sizes = ", ".join(map(str, self.communities))
        return [
            f"{used} of the teacher's {used + len(self.dropped)} filters are imitated; "
            f"{len(self.dropped)} have no strong link and are dropped",
            f"{len(self.communities)} communities of {sizes} filters, modularity {self.modularity:.2f}",
            *self.notes,
            *(
                f"student {number}: {len(part)} filters, {share:.1%} of the activation"
                for number, (part, share) in enumerate(zip(self.parts, self.activation, strict=True), start=1)
            ),
        ]


def partition(activations: Tensor, settings: DistrEESettings, shares: Sequence[float], seed: int) -> Partition:
    """Return each student's filters.

    Args:
        activations: the teacher's last feature (N, D) of validation images.
        settings: number of students, strongest filters, kept links, resolution.
        shares: one per student, positive: how many filters it should get relative to the others; empty: all the same.
        seed: of the community detection.

    Raises:
        UserError: too few filters are linked for the number of students; activations are not finite; shares do not fit.
    """
    students = settings.students
    shares = tuple(shares) or (1.0,) * students
    if len(shares) != students or min(shares) <= 0:
        raise UserError(f"give one share above 0 for each of the {students} students, or none")
    if not activations.isfinite().all():
        raise UserError("the teacher's activations are not finite: train it again with a smaller learning rate")
    graph = filter_graph(link_weights(activations, settings.top_filters), settings.kept_edges)
    linked = _linked(graph)
    if len(linked) < FEWEST * students:
        raise UserError(
            f"only {len(linked)} of the teacher's {len(graph)} filters have a strong link, too few for {students} "
            f"students of {FEWEST} or more: raise distree.kept-edges, take a wider teacher or lower distree.students"
        )
    totals = shares_of_largest(activations).sum(0)
    found, notes = _enough_communities(linked, settings.resolution, students, seed)
    parts, found, halvings = _balanced(found, shares, totals)
    if halvings:
        notes.append(
            f"the largest community was halved by filter rank, {halvings} times, until every student had its share"
        )
    if min(map(len, parts)) < FEWEST:
        raise UserError(
            f"a student would get fewer than {FEWEST} filters: "
            "make its width and the others' more equal, or lower distree.students"
        )
    return Partition(
        parts=parts,
        dropped=tuple(sorted(set(graph) - set(linked))),
        communities=tuple(map(len, found)),
        modularity=float(nx.community.modularity(linked, found, weight="weight")),
        activation=tuple(float(totals[list(part)].sum() / totals.sum()) for part in parts),
        notes=tuple(notes),
    )


def _enough_communities(
    graph: nx.Graph, resolution: float, students: int, seed: int
) -> tuple[list[Community], list[str]]:
    """Return communities, at least one per student if a higher resolution gives them, and a note if it was raised."""
    for step in range(RESOLUTION_STEPS + 1):
        used = resolution * RESOLUTION_STEP**step
        found = communities(graph, used, seed)
        if len(found) >= students:
            break
    raised = (
        f"the resolution was raised from {resolution:.2f} to {used:.2f}, since communities were fewer than students"
    )
    return found, [raised] if step else []


def _balanced(
    found: list[Community], shares: Sequence[float], totals: Tensor
) -> tuple[tuple[Community, ...], list[Community], int]:
    """Return the packed parts, the communities after halving the largest one as often as needed, and how often.

    Halving ends when every student has between half and twice its fair number of filters.
    """
    filters = sum(map(len, found))
    due = [max(FEWEST, filters * share / sum(shares)) for share in shares]
    halvings = 0
    while True:
        parts = pack(found, shares)
        fits = all(max(FEWEST, fair / 2) <= len(part) <= 2 * fair for part, fair in zip(parts, due, strict=True))
        if fits or len(found[0]) == 1:
            return parts, found, halvings
        found = _largest_first([*split(found[0], totals), *found[1:]])
        halvings += 1


def _linked(graph: nx.Graph) -> nx.Graph:
    return graph.subgraph([f for f in graph if graph.degree[f]]).copy()


def _largest_first(found: Iterable[Community]) -> list[Community]:
    return sorted(found, key=lambda community: (-len(community), community))

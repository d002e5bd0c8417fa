from collections.abc import Sequence
from itertools import combinations

import networkx as nx
import pytest
import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.model import partition as module
from strategies.distree.model.partition import (
    Partition,
    communities,
    filter_graph,
    link_weights,
    pack,
    partition,
    split,
)
from strategies.distree.settings import DistrEESettings

IMAGES = torch.tensor([[2.0, 1.0, -1.0], [1.0, 2.0, 4.0]])


def activations(seed: int, images: int = 60, filters: int = 40) -> Tensor:
    """Return filters of unequal strength, some silent in an image, like a trained teacher's."""
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(filters, generator=generator)
    return (torch.rand(images, filters, generator=generator) - 0.2) * strength


def weights_one_by_one(values: Tensor, top: int) -> Tensor:
    weights = torch.zeros(values.shape[1], values.shape[1], dtype=torch.float64)
    for image in values.double().clamp_min(0):
        if image.max() > 0:
            a = image / image.max()
            strongest = sorted(range(len(a)), key=lambda c: (-float(a[c]), c))[:top]
            for c, d in combinations(strongest, 2):
                weights[c, d] += a[c] * a[d] * (a[c] - a[d]).abs()
                weights[d, c] = weights[c, d]
    return weights


def graph_of(edges: Sequence[tuple[int, int]], nodes: int) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(nodes))
    graph.add_weighted_edges_from((one, other, 1.0) for one, other in edges)
    return graph


def cliques(*groups: Sequence[int]) -> list[tuple[int, int]]:
    return [pair for group in groups for pair in combinations(group, 2)]


@pytest.mark.parametrize(
    ("top", "zero_one", "zero_two", "one_two"),
    [
        (2, 1 * 0.5 * 0.5, 0.0, 0.5 * 1 * 0.5),
        (3, 1 * 0.5 * 0.5 + 0.25 * 0.5 * 0.25, 0.25 * 1 * 0.75, 0.5 * 1 * 0.5),
        (50, 0.28125, 0.1875, 0.25),
    ],
)
def test_link_weights_of_three_filters_by_hand(top: int, zero_one: float, zero_two: float, one_two: float) -> None:
    expected = [[0, zero_one, zero_two], [zero_one, 0, one_two], [zero_two, one_two, 0]]
    weights = link_weights(IMAGES, top)
    assert weights.dtype == torch.float64
    assert weights.tolist() == expected


def test_filters_of_equal_strength_are_not_linked() -> None:
    assert not link_weights(torch.ones(5, 4), 4).any()


def test_images_without_activation_contribute_nothing() -> None:
    silent = torch.tensor([[0.0, 0.0, 0.0], [-1.0, -2.0, 0.0]])
    assert torch.equal(link_weights(torch.cat([silent, IMAGES]), 3), link_weights(IMAGES, 3))
    assert not link_weights(silent, 3).any()


@pytest.mark.parametrize("top", [2, 5, 12])
def test_link_weights_equal_a_plain_loop(top: int) -> None:
    values = activations(seed=top, filters=12)
    weights = link_weights(values, top)
    torch.testing.assert_close(weights, weights_one_by_one(values, top))
    assert torch.equal(weights, weights.T)
    assert not weights.diagonal().any()


def test_link_weights_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    values = activations(seed=0)
    whole = link_weights(values, 10)
    monkeypatch.setattr(module, "LINKS_AT_ONCE", 700)
    assert torch.equal(link_weights(values, 10), whole)


def upper(weights: Sequence[tuple[int, int, float]], filters: int) -> Tensor:
    matrix = torch.zeros(filters, filters, dtype=torch.float64)
    for one, other, weight in weights:
        matrix[one, other] = matrix[other, one] = weight
    return matrix


@pytest.mark.parametrize(
    ("kept", "edges"),
    [
        (1.0, {(0, 1): 0.25, (1, 2): 0.5, (2, 3): 0.75, (0, 3): 1.0}),
        # each of the weights 1, 2, 3, 4 stands twice in W: the upper half of the eight entries starts between 2 and 3
        (0.5, {(2, 3): 0.75, (0, 3): 1.0}),
        (0.01, {(0, 3): 1.0}),
    ],
)
def test_graph_keeps_the_strongest_share_of_links(kept: float, edges: dict[tuple[int, int], float]) -> None:
    graph = filter_graph(upper([(0, 1, 1.0), (1, 2, 2.0), (2, 3, 3.0), (0, 3, 4.0)], filters=9), kept)
    assert sorted(graph) == list(range(9))
    assert {(one, other): weight for one, other, weight in graph.edges.data("weight")} == edges


def test_link_at_the_percentile_stays() -> None:
    assert filter_graph(upper([(0, 1, 2.0), (1, 2, 2.0)], filters=3), 0.01).number_of_edges() == 2


def test_graph_without_links_has_no_edges() -> None:
    graph = filter_graph(torch.zeros(3, 3, dtype=torch.float64), 0.5)
    assert (len(graph), graph.number_of_edges()) == (3, 0)


def test_communities_are_sorted_and_skip_isolated_filters() -> None:
    graph = graph_of([*cliques([0, 5, 6], [1, 2, 3, 4], [8, 9])], nodes=11)
    assert communities(graph, 1.0, seed=1) == [(1, 2, 3, 4), (0, 5, 6), (8, 9)]


def test_higher_resolution_gives_more_communities() -> None:
    graph = graph_of([*cliques(range(6), range(6, 12)), (0, 6)], nodes=12)
    assert len(communities(graph, 1.0, seed=1)) == 2
    assert len(communities(graph, 20.0, seed=1)) == 12


def test_packing_gives_the_next_largest_to_the_smallest_part() -> None:
    found = [(0, 1), (2, 3, 4), (5, 6, 7, 8, 9), (10,), (11, 12, 13, 14)]
    # 5 | 4, then 3 to the second, 2 to the first, 1: 7 | 7, the first of equals
    assert pack(found, (1, 1)) == ((0, 1, 5, 6, 7, 8, 9, 10), (2, 3, 4, 11, 12, 13, 14))


def test_packing_is_relative_to_the_shares() -> None:
    found = [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9), (10, 11, 12, 13)]
    # the larger share comes first of equals: 4 of 3 shares; then 2 of 1 share; 4/3 < 2, 6/3 = 2 to the larger, 8/3 > 2
    assert pack(found, (1, 3)) == ((0, 1, 6, 7), (2, 3, 4, 5, 8, 9, 10, 11, 12, 13))


def test_splitting_takes_every_other_filter_by_strength() -> None:
    totals = torch.tensor([9.0, 1.0, 5.0, 7.0, 0.0, 5.0])
    # by strength: 0, 3, 2, 5, 1
    assert split((0, 1, 2, 3, 5), totals) == ((0, 1, 2), (3, 5))


@pytest.fixture
def in_groups(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Edges that `partition` finds for any activations; the test fills them in."""
    edges: list[tuple[int, int]] = []
    monkeypatch.setattr(module, "filter_graph", lambda weights, kept: graph_of(edges, len(weights)))
    return edges


def test_partition_of_two_clear_groups(in_groups: list[tuple[int, int]]) -> None:
    in_groups += cliques([0, 2, 4], [1, 3, 5])
    # per image divided by the largest: 1, .5, 0, 0, 0, 0, 0 and .5, 0, .25, 0, 0, 0, 1
    values = torch.tensor([[2.0, 1, 0, 0, 0, 0, 0], [2.0, 0, 1, 0, 0, 0, 4]])
    found = partition(values, DistrEESettings(students=2), (), seed=1)
    assert found.parts == ((0, 2, 4), (1, 3, 5))
    assert found.dropped == (6,)
    assert found.communities == (3, 3)
    # two halves without a link between them: 2 (1/2 - 1/4)
    assert found.modularity == pytest.approx(0.5)
    assert found.activation == pytest.approx((1.75 / 3.25, 0.5 / 3.25))
    assert found.report() == [
        "6 of the teacher's 7 filters are imitated; 1 have no strong link and are dropped",
        "2 communities of 3, 3 filters, modularity 0.50",
        "student 1: 3 filters, 53.8% of the activation",
        "student 2: 3 filters, 15.4% of the activation",
    ]


def test_resolution_rises_with_too_few_communities(in_groups: list[tuple[int, int]]) -> None:
    # four cliques in a ring of pairs: two communities at a low resolution
    in_groups += [*cliques(range(4), range(4, 8), range(8, 12), range(12, 16)), (0, 4), (1, 5), (8, 12), (9, 13)]
    settings = DistrEESettings(students=4, resolution=0.5)
    found = partition(activations(0, filters=16), settings, (), seed=1)
    assert found.communities == (4, 4, 4, 4)
    assert set(found.parts) == {tuple(range(first, first + 4)) for first in (0, 4, 8, 12)}
    assert any("resolution was raised from 0.50 to" in line for line in found.report())
    assert not any("halved" in line for line in found.report())


def test_largest_community_is_split_if_resolution_fails(
    in_groups: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "communities", lambda graph, resolution, seed: [tuple(range(8))])
    in_groups += cliques(range(8))
    values = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2, 1]])
    found = partition(values, DistrEESettings(students=3), (), seed=1)
    # 0 2 4 6 and 1 3 5 7, then the first of them again
    assert found.parts == ((1, 3, 5, 7), (0, 4), (2, 6))
    assert any("halved by filter rank, 2 times" in line for line in found.report())


def test_community_that_makes_parts_unequal_is_split(in_groups: list[tuple[int, int]]) -> None:
    in_groups += cliques(range(14), (14, 15))
    found = partition(activations(0, filters=16), DistrEESettings(students=2, resolution=1.0), (), seed=1)
    # 14 against 2 is less than half of 8: 7 + 7 + 2
    assert found.communities == (7, 7, 2)
    assert sorted(map(len, found.parts)) == [7, 9]
    assert any("halved" in line for line in found.report())


def test_unequal_students_get_filters_in_proportion(in_groups: list[tuple[int, int]]) -> None:
    in_groups += cliques(range(24))
    found = partition(activations(0, filters=24), DistrEESettings(students=2), (1, 3), seed=1)
    assert list(map(len, found.parts)) == [6, 18]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("students", [1, 2, 3, 5])
def test_partitions_of_random_activations_are_sound(seed: int, students: int) -> None:
    values = activations(seed)
    settings = DistrEESettings(students=students, top_filters=12, kept_edges=0.2)
    found = partition(values, settings, (), seed)
    filters = [f for part in found.parts for f in part]
    assert sorted([*filters, *found.dropped]) == list(range(40))
    fair = len(filters) / students
    assert all(fair / 2 <= len(part) <= 2 * fair for part in found.parts)
    assert all(list(part) == sorted(part) for part in found.parts)
    graph = filter_graph(link_weights(values, 12), 0.2)
    assert found.dropped == tuple(nx.isolates(graph))
    assert sum(found.communities) == len(filters)
    assert sum(found.activation) <= 1 + 1e-12
    assert partition(values, settings, (), seed) == found


def test_strong_filters_are_spread_over_students() -> None:
    found = partition(activations(3), DistrEESettings(students=2, top_filters=12, kept_edges=0.2), (), seed=1)
    assert min(found.activation) > 0.25


def test_overlapping_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        Partition(((1, 2), (2, 3)), (), (2, 2), 0.0, (0.5, 0.5))


def test_teacher_with_too_few_linked_filters_is_refused() -> None:
    with pytest.raises(UserError, match=r"only 2 of the teacher's 3 filters .* 2 students .* raise distree.kept-edges"):
        partition(IMAGES, DistrEESettings(students=2), (), seed=1)


def test_students_with_too_few_filters_are_refused(in_groups: list[tuple[int, int]]) -> None:
    in_groups += cliques(range(4))
    with pytest.raises(UserError, match="fewer than 2 filters"):
        partition(activations(0, filters=4), DistrEESettings(students=2), (1, 100), seed=1)


@pytest.mark.parametrize("shares", [(1.0,), (1.0, 0.0), (1.0, 1.0, 1.0)])
def test_shares_must_fit_the_students(shares: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="one share above 0 for each of the 2 students"):
        partition(activations(0), DistrEESettings(students=2), shares, seed=1)


def test_diverged_teacher_is_refused() -> None:
    with pytest.raises(UserError, match="not finite"):
        partition(torch.full((2, 3), torch.nan), DistrEESettings(), (), seed=1)

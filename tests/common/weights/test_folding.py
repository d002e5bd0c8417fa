import itertools

import pytest
import torch

from common.weights.flat import FlatState, Layout
from common.weights.folding import MAGNITUDE, Fold, UnfitError, check, fraction_bits, quantise

LAYOUT = Layout((("w", (2, 3)),), (("n", ()),))
WEIGHTS = (17, 3, 250, 41)


def states(number: int = 4) -> list[FlatState]:
    source = torch.Generator().manual_seed(3)
    return [
        FlatState(LAYOUT, torch.randn(6, generator=source) * 10 ** (i - 1), torch.tensor([i])) for i in range(number)
    ]


def folded(groups: list[list[int]], bits: int, lone: bool) -> Fold:
    """Fold each group as a node and the sums as a server; with `lone`, groups of one client travel as fp32."""
    server = Fold(LAYOUT, bits)
    for group in groups:
        if lone and len(group) == 1:
            server.add_state(states()[group[0]], WEIGHTS[group[0]], group[0])
            continue
        node = Fold(LAYOUT, bits)
        for client in group:
            node.add_state(states()[client], WEIGHTS[client], client)
        server.add(node)
    return server


def test_order_and_grouping_do_not_change_a_bit():
    bits = fraction_bits(sum(WEIGHTS))
    reference = folded([[0, 1, 2, 3]], bits, lone=False).mean()
    for order in itertools.permutations(range(4)):
        a, b, c, d = order
        for groups in ([[a], [b], [c], [d]], [[a, b], [c, d]], [[a, b, c], [d]], [[a], [b, c, d]], [[a, b, c, d]]):
            for lone in (False, True):
                fold = folded(groups, bits, lone)
                assert torch.equal(fold.mean().floats, reference.floats)
                assert torch.equal(fold.mean().counters, reference.counters)
                assert fold.weight == sum(WEIGHTS)
                assert sorted(fold.clients) == [0, 1, 2, 3]


def test_mean_is_the_weighted_mean():
    fold = folded([[0, 1, 2, 3]], fraction_bits(sum(WEIGHTS)), lone=False)
    exact = sum(s.floats.double() * w for s, w in zip(states(), WEIGHTS, strict=True)) / sum(WEIGHTS)
    assert torch.allclose(fold.mean().floats.double(), exact, rtol=1e-7, atol=1e-10)


def test_mean_of_exact_numbers_is_exact():
    fold = Fold(Layout((("w", (2,)),)), 4)
    fold.add_state(FlatState(fold.layout, torch.tensor([1.0, -0.5]), torch.zeros(0, dtype=torch.int64)), 1, 0)
    fold.add_state(FlatState(fold.layout, torch.tensor([2.0, 0.25]), torch.zeros(0, dtype=torch.int64)), 3, 1)
    assert fold.sums.tolist() == [112, 4]
    assert fold.mean().floats.tolist() == [1.75, 0.0625]


def test_counters_of_a_fold_are_the_maximum():
    assert folded([[3], [0, 1], [2]], 20, lone=True).mean().counters.tolist() == [3]


def test_rounding_is_to_even_and_symmetric():
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.26])
    assert quantise(values, 1, 0).tolist() == [0, 2, 2, 0, -2, 0]
    assert quantise(values, 2, 0).tolist() == [1, 3, 5, -1, -3, 1]


@pytest.mark.parametrize(("weight", "bits"), [(1, 40), (1023, 40), (1024, 39), (50_000, 34), (0, 40)])
def test_fraction_bits_follow_from_the_total_weight(weight, bits):
    assert fraction_bits(weight) == bits


@pytest.mark.parametrize("total", [1, 1023, 1024, 60_000, 2**28])
def test_sum_does_not_overflow_at_the_bound(total):
    largest = torch.nextafter(torch.tensor(MAGNITUDE), torch.tensor(0.0))
    layout = Layout((("w", (2,)),))
    state = FlatState(layout, torch.stack([largest, -largest]), torch.zeros(0, dtype=torch.int64))
    check(state, layout)
    fold = Fold(layout, fraction_bits(total))
    parts = [total - total // 2, total // 2] if total > 1 else [1]
    for client, part in enumerate(parts):
        fold.add_state(state, part, client)
    assert fold.sums[0] > 0 > fold.sums[1]
    assert abs(int(fold.sums[0])) < 2**62
    assert fold.mean().floats.tolist() == state.floats.tolist()


def test_more_weight_than_announced_is_refused():
    fold = Fold(LAYOUT, fraction_bits(100))
    with pytest.raises(ValueError, match="weight 2000 is impossible"):
        fold.add_state(states()[0], 2000, 0)
    assert fold.sums is None


@pytest.mark.parametrize("weight", [0, -5])
def test_weight_below_one_is_refused(weight):
    with pytest.raises(ValueError, match="is impossible"):
        Fold(LAYOUT, 20).add_state(states()[0], weight, 0)


def test_folded_sum_out_of_range_is_refused():
    bad = Fold(LAYOUT, 20, torch.full((6,), -(2**62)), torch.zeros(1, dtype=torch.int64), 5, [0])
    with pytest.raises(ValueError, match="out of range"):
        Fold(LAYOUT, 20).add(bad)


def test_sums_of_other_rounds_or_tiers_are_refused():
    with pytest.raises(ValueError, match="different rounds or tiers"):
        Fold(LAYOUT, 20).add(Fold(LAYOUT, 21))
    with pytest.raises(ValueError, match="different rounds or tiers"):
        Fold(LAYOUT, 20).add(Fold(Layout((("v", (6,)),)), 20))


def test_empty_fold_adds_nothing_and_has_no_mean():
    fold = Fold(LAYOUT, 20)
    fold.add(Fold(LAYOUT, 20))
    with pytest.raises(ValueError, match="nothing was folded"):
        fold.mean()


def test_folding_does_not_change_the_client_state():
    state = states()[2]
    before = state.floats.clone(), state.counters.clone()
    fold = Fold(LAYOUT, 30)
    fold.add_state(state, 5, 0)
    fold.add_state(states()[3], 5, 1)
    assert torch.equal(state.floats, before[0])
    assert torch.equal(state.counters, before[1])


@pytest.mark.parametrize(
    ("floats", "message"),
    [
        (torch.tensor([0, 1, 2, 3, 4, float("nan")]), "not finite"),
        (torch.tensor([0, 1, 2, 3, 4, float("inf")]), "not finite"),
        (torch.tensor([0, 1, 2, 3, 4, -MAGNITUDE]), "out of range"),
        (torch.tensor([0, 1, 2, 3, 4, MAGNITUDE]), "out of range"),
        (torch.zeros(5), "sizes 5, 1 differ"),
    ],
)
def test_check_refuses_values_out_of_range(floats, message):
    with pytest.raises(ValueError, match=message):
        check(FlatState(LAYOUT, floats, torch.tensor([1])), LAYOUT)


@pytest.mark.parametrize(
    ("layout", "named"),
    [
        (Layout((("w", (3, 2)),), (("n", ()),)), "w"),
        (Layout((("v", (2, 3)),), (("n", ()),)), "v, w"),
        (Layout((("w", (2, 3)),), (("m", ()),)), "m, n"),
    ],
)
def test_check_names_the_wrong_keys(layout, named):
    with pytest.raises(ValueError, match=f"first: {named}$"):
        check(FlatState(layout, torch.zeros(6), torch.tensor([1])), LAYOUT)


def test_first_unfit_value_is_named_with_its_key():
    layout = Layout((("a", (2, 2)), ("b", ()), ("c", (1,))), (("n", ()), ("m", ())))
    floats = torch.tensor([0.0, 0.0, 0.0, 0.0, 5000.0, float("nan")])
    with pytest.raises(UnfitError, match=r"^weights are not finite: c has nan$"):
        check(FlatState(layout, floats, torch.zeros(2, dtype=torch.int64)), layout)
    floats[5] = -6000.0
    with pytest.raises(UnfitError, match=r"^weights out of range: b has 5000$"):
        check(FlatState(layout, floats, torch.zeros(2, dtype=torch.int64)), layout)
    with pytest.raises(UnfitError, match=r"^counters out of range: m has -3$"):
        check(FlatState(layout, torch.zeros(6), torch.tensor([1, -3])), layout)


def test_check_accepts_a_valid_state():
    check(states()[0], LAYOUT)
    check(FlatState.of({}), Layout(()))


@pytest.mark.parametrize("counter", [-1, -(2**63), 2**53 + 1, 2**63 - 1])
def test_impossible_counter_is_refused(counter):
    state = FlatState(LAYOUT, torch.zeros(6), torch.tensor([counter]))
    with pytest.raises(UnfitError, match="counters out of range"):
        check(state, LAYOUT)
    fold, other = Fold(LAYOUT, 20), Fold(LAYOUT, 20)
    other.add_state(state, 1, 0)
    with pytest.raises(UnfitError, match="counters out of range"):
        fold.add(other)
    assert (fold.sums, fold.weight, fold.clients) == (None, 0, [])
    check(FlatState(LAYOUT, torch.zeros(6), torch.tensor([2**53])), LAYOUT)

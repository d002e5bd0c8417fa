import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from common.messages.protocol import ClientResult, Reply
from common.weights.flat import FlatState, Layout
from common.weights.folding import Fold, fraction_bits
from strategies.engine.aggregation import RoundCollector

SHALLOW = Layout((("a", (2,)),), (("n", ()),))
DEEP = Layout((("a", (2,)), ("b", (1,))), (("n", ()),))
LAYOUTS = {1: SHALLOW, 2: DEEP}
ASKED = {0: 1, 1: 1, 2: 2, 3: 2, 4: 2}
EXAMPLES = {0: 10, 1: 30, 2: 20, 3: 20, 4: 7}
BITS = fraction_bits(sum(EXAMPLES.values()))
BITS_ALLOW = 2 ** sum(EXAMPLES.values()).bit_length() - 1  # most samples before the sum overflows


def state(client: int, value: float | None = None) -> FlatState:
    layout = LAYOUTS[ASKED[client]]
    fill = float(client) if value is None else value
    return FlatState(layout, torch.full((layout.sizes[0],), fill), torch.tensor([client]))


def result(client: int, **changes) -> ClientResult:
    return replace(ClientResult(client, ASKED[client], EXAMPLES[client]), **changes)


def folded(*clients: int) -> Reply:
    """Return a node's reply; the model of a client alone in its tier is sent as fp32."""
    reply = Reply([result(c) for c in clients])
    for depth in (1, 2):
        members = [c for c in clients if ASKED[c] == depth]
        if len(members) == 1:
            reply.lone[members[0]] = state(members[0])
        for client in members if len(members) > 1 else ():
            reply.folds.setdefault(depth, Fold(LAYOUTS[depth], BITS)).add_state(state(client), EXAMPLES[client], client)
    return reply


def collect(*replies: Reply, asked=ASKED, **options):
    collector = RoundCollector(LAYOUTS, BITS, asked, EXAMPLES, **options)
    for reply in replies:
        collector.add(reply, collector.asked)
    return collector.finish()


def test_tiers_are_weighted_means():
    update = collect(folded(0, 1, 2, 3, 4))
    assert update.tiers[1].state["a"].tolist() == [0.75, 0.75]
    assert update.tiers[2].state["b"].tolist() == pytest.approx([(2 * 20 + 3 * 20 + 4 * 7) / 47])
    assert (update.tiers[1].weight, update.tiers[2].weight) == (40, 47)
    assert (update.tiers[1].clients, update.tiers[2].clients) == ((0, 1), (2, 3, 4))
    assert update.tiers[2].state["n"] == 4
    assert update.failures == {}


def test_order_and_grouping_change_no_bit():
    reference = collect(folded(0, 1, 2, 3, 4))
    groupings = [[(0,), (1,), (2,), (3,), (4,)], [(0, 2), (1, 3), (4,)], [(4, 3, 2), (1, 0)], [(2, 0, 4), (3,), (1,)]]
    for grouping in groupings:
        for order in itertools.permutations(grouping):
            update = collect(*(folded(*group) for group in order))
            assert list(update.results) == [0, 1, 2, 3, 4]
            for depth, tier in reference.tiers.items():
                assert update.tiers[depth].clients == tier.clients
                assert all(torch.equal(update.tiers[depth].state[k], v) for k, v in tier.state.items())


def test_failed_client_is_named_and_others_count():
    bad = Reply([result(2, error="RuntimeError: no memory", num_examples=0)])
    update = collect(folded(0, 1), bad, folded(3, 4))
    assert update.failures == {2: "RuntimeError: no memory"}
    assert list(update.results) == [0, 1, 3, 4]
    assert update.tiers[2].weight == 27


def test_missing_reply_is_a_failure():
    assert collect(folded(0, 1)).failures == dict.fromkeys((2, 3, 4), "did not answer in time")


def test_tier_without_replies_is_absent():
    assert set(collect(folded(0, 1)).tiers) == {1}


def test_no_replies_give_no_tiers():
    update = collect()
    assert (update.tiers, update.results) == ({}, {})
    assert set(update.failures) == set(ASKED)


@pytest.mark.parametrize(
    ("lone", "reason"),
    [
        (FlatState(DEEP, torch.tensor([1.0, float("nan"), 1.0]), torch.tensor([1])), "not finite"),
        (FlatState(DEEP, torch.tensor([1.0, 5000.0, 1.0]), torch.tensor([1])), "out of range"),
        (FlatState(SHALLOW, torch.ones(2), torch.tensor([1])), "keys or shapes differ from the tier's, first: b"),
        (FlatState(Layout((("a", (2,)), ("x", (1,))), (("n", ()),)), torch.ones(3), torch.tensor([1])), "first: b, x"),
        (FlatState(DEEP, torch.ones(2), torch.tensor([1])), "sizes 2, 1 differ"),
    ],
)
def test_lone_model_is_checked(lone, reason):
    update = collect(Reply([result(2)], lone={2: lone}), folded(3, 4))
    assert reason in update.failures[2]
    assert list(update.results) == [3, 4]
    assert update.tiers[2].clients == (3, 4)


@pytest.mark.parametrize("examples", [0, -3])
def test_invalid_sample_count_is_rejected(examples):
    update = collect(Reply([result(2, num_examples=examples)], lone={2: state(2)}), folded(3, 4))
    assert "is impossible" in update.failures[2]
    assert update.tiers[2].weight == 27


def test_metrics_of_no_samples_are_rejected_where_no_model_travels():
    nothing = {depth: Layout((), ()) for depth in LAYOUTS}
    collector = RoundCollector(nothing, BITS, ASKED, EXAMPLES)
    collector.add(Reply([result(2, num_examples=0, metrics={"own": 1.0}), result(3, num_examples=0)]), [2, 3])
    update = collector.finish()
    assert update.failures[2] == "has metrics of 0 samples"
    assert list(update.results) == [3]  # without samples and without metrics
    assert update.mean_metrics() == {}


@pytest.mark.parametrize("examples", [21, BITS_ALLOW, 10**6])
def test_only_client_with_too_many_samples_is_left_out(examples):
    fold = Fold(DEEP, BITS, torch.ones(3, dtype=torch.int64), torch.ones(1, dtype=torch.int64), examples + 7, [2, 4])
    for lying in (
        Reply([result(2, num_examples=examples)], lone={2: state(2)}),
        Reply([result(2, num_examples=examples), result(4)], folds={2: fold}),
    ):
        update = collect(lying, folded(0, 1), folded(3))
        assert update.failures[2] == f"counts {examples} samples, where it announced 20"
        assert 2 in update.rejected
        assert update.tiers[2].clients == (3,)
        assert update.tiers[1].weight == 40


def test_fold_must_match_round():
    def sum_of(bits: int = BITS, layout: Layout = DEEP, weight: int = 27, depth: int = 2) -> Reply:
        fold = Fold(layout, bits, torch.ones(layout.sizes[0], dtype=torch.int64), torch.ones(1, dtype=torch.int64))
        fold.weight, fold.clients = weight, [3, 4]
        return Reply([result(3), result(4)], folds={depth: fold})

    for wrong in (sum_of(bits=BITS + 1), sum_of(layout=SHALLOW), sum_of(weight=28), sum_of(depth=1), sum_of(depth=9)):
        update = collect(wrong, folded(0, 1), folded(2))
        assert set(update.failures) == {3, 4}
        assert list(update.results) == [0, 1, 2]
        assert update.tiers[2].weight == 20
    assert collect(sum_of(), folded(0, 1), folded(2)).failures == {}


def test_fold_with_failed_client_is_left_out():
    reply = folded(3, 4)
    reply.results[0] = result(3, error="late")
    update = collect(reply, folded(2))
    assert update.failures[3] in (
        "late",
        "the folded sum holds clients that failed, or that its node was not asked for",
    )
    assert 4 in update.failures
    assert update.tiers[2].clients == (2,)


def test_clients_without_order_do_not_count():
    update = collect(folded(0, 1), asked={0: 1})
    assert 1 not in update.results
    assert update.tiers == {}


def test_client_arrays_are_in_client_order():
    late, early = folded(4), folded(0)
    late.client_arrays = {4: {"d": np.array([4.0])}}
    early.client_arrays = {0: {"d": np.array([0.0])}}
    update = collect(late, early)
    assert list(update.client_arrays) == [0, 4]
    assert update.client_arrays[4]["d"].tolist() == [4.0]


def test_separate_models_are_in_client_order():
    replies = [Reply([result(c)], lone={c: state(c)}) for c in (4, 0, 2)]
    update = collect(*replies, apart=True)
    assert list(update.states) == [0, 2, 4]
    assert collect(*replies).states == {}


def tensors_of(value, seen: set[int]) -> int:
    """Count the distinct tensor elements that can be reached from an object."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        return value.numel()
    if isinstance(value, np.ndarray):
        return value.size
    if isinstance(value, dict):
        return sum(tensors_of(v, seen) for v in value.values())
    if isinstance(value, list | tuple):
        return sum(tensors_of(v, seen) for v in value)
    return tensors_of(vars(value), seen) if hasattr(value, "__dict__") else 0


def held(clients: int, **options) -> int:
    layout = Layout((("w", (1000,)),))
    asked = dict.fromkeys(range(clients), 1)
    collector = RoundCollector({1: layout}, fraction_bits(clients), asked, asked, **options)
    for client in range(clients):
        model = FlatState(layout, torch.full((1000,), float(client)), torch.zeros(0, dtype=torch.int64))
        collector.add(Reply([ClientResult(client, 1, 1)], lone={client: model}), [client])
    return tensors_of(collector, set())


def test_memory_is_one_sum_per_tier_for_any_client_count():
    assert held(2) == held(40) == 1000
    assert held(40, apart=True) == 41_000

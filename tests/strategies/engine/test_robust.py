import itertools

import pytest
import torch

from common.config import load_config
from common.errors import UserError
from common.messages.protocol import ClientResult, Reply
from common.weights.flat import FlatState, Layout
from common.weights.folding import Fold, fraction_bits
from strategies.configuration import read_config
from strategies.engine.aggregation import RoundCollector
from strategies.engine.robust import (
    RobustSettings,
    far_off,
    lower_median,
    make_collector,
    robust_settings,
    trimmed,
    trimmed_mean,
)
from strategies.node.local_training import LocalTraining
from strategies.registry import METHODS, all_settings, find_method

LAYOUT = Layout((("w", (2,)),), (("n", ()),))
START = FlatState(LAYOUT, torch.tensor([10.0, 0.0]), torch.tensor(0).reshape(1))
SAMPLES = {0: 10, 1: 30, 2: 20, 3: 20, 4: 7}
BITS = fraction_bits(sum(SAMPLES.values()))
CHEATING = 4
NODES = [{"partition-id": p} for p in range(6)]


def state(*values: float, counter: int = 1) -> FlatState:
    return FlatState(LAYOUT, torch.tensor(values), torch.tensor([counter]))


def collect(states: dict[int, FlatState], order=None, **options):
    collector = make_collector(
        RobustSettings(**options),
        {1: LAYOUT},
        BITS,
        dict.fromkeys(SAMPLES, 1),
        SAMPLES,
        lambda depth: START,
        apart=False,
    )
    for client in order or states:
        collector.add(Reply([ClientResult(client, 1, SAMPLES[client])], lone={client: states[client]}), [client])
    return collector.finish()


# moved by 5, 5, 13, 1 and 500 from (10, 0)
STATES = {
    0: state(13.0, 4.0, counter=3), 1: state(10.0, -5.0, counter=3), 2: state(15.0, 12.0, counter=4),
    3: state(10.0, 1.0, counter=3), 4: state(310.0, 400.0, counter=2**50),
}  # fmt: skip


def test_median_and_trimmed_mean_of_known_numbers():
    median = collect(STATES, aggregation="median").tiers[1]
    assert median.state["w"].tolist() == [13.0, 4.0]
    assert median.state["n"] == 3
    assert (median.weight, median.clients) == (5 * 20, (0, 1, 2, 3, 4))
    trimmed_ = collect(STATES, aggregation="trimmed-mean", trim=0.2).tiers[1]
    assert trimmed_.state["w"].tolist() == pytest.approx([(13 + 10 + 15) / 3, (4 + 12 + 1) / 3])
    even = collect({c: STATES[c] for c in (0, 1, 2, 4)}, aggregation="median").tiers[1]
    assert even.state["w"].tolist() == [14.0, 8.0]
    assert even.weight == 4 * 10


def test_one_client_cannot_move_result_beyond_others():
    for aggregation, number in itertools.product(("median", "trimmed-mean"), (3, 4, 5)):
        honest = {c: state(float(c), -float(c)) for c in range(number - 1)}
        for value in (4e3, -4e3):
            update = collect({**honest, number - 1: state(value, value)}, aggregation=aggregation)
            assert 0 <= update.tiers[1].state["w"][0] <= number - 2
            assert -(number - 2) <= update.tiers[1].state["w"][1] <= 0


@pytest.mark.parametrize(
    "options", [{"aggregation": "median"}, {"aggregation": "trimmed-mean", "trim": 0.3}, {"reject": 2.0}]
)
def test_arrival_order_changes_no_bit(options):
    source = torch.Generator().manual_seed(1)
    states = {c: FlatState(LAYOUT, torch.randn(2, generator=source) * 10**c, torch.tensor([c])) for c in SAMPLES}
    states[1].floats[0], states[2].floats[0] = 0.0, -0.0
    reference = collect(states, **options)
    for order in itertools.permutations(states):
        update = collect(states, order, **options)
        for key, value in reference.tiers[1].state.items():
            assert value.numpy().tobytes() == update.tiers[1].state[key].numpy().tobytes()
        assert update.failures == reference.failures
        assert list(update.results) == list(reference.results)


def test_block_size_changes_no_bit(monkeypatch):
    vectors = list(torch.randn((5, 1000), generator=torch.Generator().manual_seed(2)))
    whole = trimmed_mean(vectors, 2)
    assert torch.equal(whole, torch.stack(vectors).median(dim=0).values)
    monkeypatch.setattr("strategies.engine.robust.COLUMNS", 7)
    assert torch.equal(trimmed_mean(vectors, 2), whole)
    assert torch.allclose(trimmed_mean(vectors, 0), torch.stack(vectors).mean(dim=0), atol=1e-6)


def test_outlier_update_is_rejected_and_counted():
    update = collect(STATES, reject=3.0)
    assert update.rejected == {4}
    assert list(update.results) == [0, 1, 2, 3]
    assert update.failures == {4: "its update's norm of 500 is more than 3 times the median of its tier, 5"}
    assert update.tiers[1].state["w"].tolist() == pytest.approx(
        [(130 + 300 + 300 + 200) / 80, (40 - 150 + 240 + 20) / 80]
    )
    assert (update.tiers[1].weight, update.tiers[1].clients) == (80, (0, 1, 2, 3))
    assert (update.states, 4 in update.client_arrays) == ({}, False)
    assert collect(STATES, reject=2.0).rejected == {2, 4}
    assert collect(STATES, reject=2.0, aggregation="median").tiers[1].clients == (0, 1, 3)


def test_norms_of_two_updates_are_not_compared(flower_log):
    update = collect({c: STATES[c] for c in (3, 4)}, reject=1.5)
    assert update.rejected == set()
    assert "tier 1: 2 updates are too few to find one that is far off" in flower_log
    assert collect({c: STATES[c] for c in (2, 3, 4)}, reject=1.5).rejected == {4}


def apart(*moves: float, layouts: dict[int, Layout]) -> set[int]:
    """Move all layers of each client, alone in its tier, by its value; return the rejected clients."""
    starts = {d: FlatState(layout, torch.ones(layout.sizes[0]), torch.ones(1).long()) for d, layout in layouts.items()}
    asked = dict(enumerate(layouts))
    collector = make_collector(
        RobustSettings(reject=3.0), layouts, BITS, asked, dict.fromkeys(asked, 10), starts.__getitem__, apart=False
    )
    for (client, depth), move in zip(asked.items(), moves, strict=True):
        sent = FlatState(layouts[depth], starts[depth].floats + move, starts[depth].counters)
        collector.add(Reply([ClientResult(client, depth, 10)], lone={client: sent}), [client])
    update = collector.finish()
    assert set(update.tiers) == set(layouts) - {asked[client] for client in update.rejected}
    return update.rejected


def test_small_tiers_are_compared_on_shared_layers(flower_log):
    deeper = [(f"deep-{unit}", (100,)) for unit in range(3)]
    nested = {d: Layout((("w", (2,)), *deeper[: d - 1]), (("n", ()),)) for d in (1, 2, 3, 4)}
    assert apart(0.01, 0.02, 0.015, 0.01, layouts=nested) == set()  # though the deepest has 150 times the weights
    assert apart(0.01, 0.02, 400.0, 0.01, layouts=nested) == {2}
    assert not [line for line in flower_log if "too few" in line]
    unlike = {d: Layout(((f"part-{d}", (2,)),), (("n", ()),)) for d in (1, 2, 3)}
    assert apart(0.01, 0.02, 400.0, layouts=unlike) == set()
    assert len([line for line in flower_log if "1 updates are too few to find one that is far off" in line]) == 3


def test_norms_of_known_updates():
    assert far_off({0: 1.0, 1: 2.0, 2: 4.0, 3: 4.1}, 2.0) == [3]
    assert far_off({0: 0.0, 1: 0.0, 2: 5.0}, 2.0) == []
    assert lower_median([3, 1, 4, 2]) == 2
    assert lower_median([5, 1, 3]) == 3


def test_trimmed_mean_drops_expected_number():
    assert [trimmed(n, 0.1) for n in (1, 2, 3, 10, 11, 20)] == [0, 0, 1, 1, 2, 2]
    assert [trimmed(n, 0.5) for n in (1, 2, 3, 4, 5, 6)] == [0, 0, 1, 1, 2, 2]
    assert [trimmed(n, 0.0) for n in (1, 5, 50)] == [0, 0, 0]


def test_no_rejection_equals_folded_mean_bit_for_bit():
    fold = Fold(LAYOUT, BITS)
    for client, one in STATES.items():
        fold.add_state(one, SAMPLES[client], client)
    folded = RoundCollector({1: LAYOUT}, BITS, dict.fromkeys(SAMPLES, 1), SAMPLES)
    folded.add(Reply([ClientResult(c, 1, n) for c, n in SAMPLES.items()], folds={1: fold}), SAMPLES)
    assert torch.equal(folded.finish().tiers[1].state["w"], collect(STATES, reject=1e6).tiers[1].state["w"])


def test_fold_is_rejected():
    fold = Fold(LAYOUT, BITS)
    fold.add_state(STATES[0], 10, 0)
    collector = make_collector(
        RobustSettings(aggregation="median"), {1: LAYOUT}, BITS, {0: 1, 1: 1}, SAMPLES, lambda depth: START, apart=False
    )
    collector.add(Reply([ClientResult(0, 1, 10)], folds={1: fold}), [0])
    update = collector.finish()
    assert update.rejected == {0}
    assert "needed apart" in update.failures[0]
    assert update.failures[1] == "did not answer in time"
    assert update.tiers == {}


def boosted(client: int, factor: float):
    """Return local training in which one client multiplies its update."""
    train = LocalTraining.train

    def patched(self, job):
        before = job.model.read(job.upload_layout).floats
        outcome = train(self, job)
        if job.client == client:
            outcome.state.floats.sub_(before).mul_(factor).add_(before)
        return outcome

    return patched


SETTINGS = {"clients.mix": "0,0,1", "run.rounds": 2, "server.evaluate-every": 1}
LEARNING = {"network.width": 8, "data.limit": 600, "train.lr": 0.1, "train.epochs": 5}


def test_rejection_and_median_limit_reversed_update(run_strategy, monkeypatch):
    monkeypatch.setattr(LocalTraining, "train", boosted(CHEATING, -30.0))
    settings = {**SETTINGS, **LEARNING}
    attacked, rejecting, median = (
        run_strategy({**settings, **options})
        for options in ({}, {"robust.reject": 4.0}, {"robust.aggregation": "median"})
    )
    accuracy = attacked.records[-1].accuracy["mean"]
    assert rejecting.records[-1].accuracy["mean"] > accuracy + 0.2
    assert median.records[-1].accuracy["mean"] > accuracy + 0.2
    assert [record.rejected for record in rejecting.records] == [[CHEATING], [CHEATING]]
    assert [list(record.failures) for record in rejecting.records] == [[CHEATING], [CHEATING]]
    assert all(record.failures == {} for record in median.records)


@pytest.mark.parametrize("options", [{"robust.reject": 4.0}, {"robust.aggregation": "trimmed-mean"}])
def test_grouping_on_nodes_changes_no_bit(run_strategy, monkeypatch, options):
    monkeypatch.setattr(LocalTraining, "train", boosted(CHEATING, -30.0))
    one, many = (
        run_strategy({**SETTINGS, **options, "clients.per-node": per_node}, nodes)
        for per_node, nodes in ((0, NODES[:1]), (1, NODES))
    )
    assert all(torch.equal(one.strategy.model[key], value) for key, value in many.strategy.model.items())
    assert [record.failures for record in one.records] == [record.failures for record in many.records]


def test_rejected_clients_count_against_quorum(run_strategy, monkeypatch):
    monkeypatch.setattr(LocalTraining, "train", boosted(CHEATING, -30.0))
    settings = {**SETTINGS, "robust.reject": 4.0, "run.rounds": 1}
    assert run_strategy({**settings, "round.quorum": 0.8}).records[0].clients == {3: 5}
    with pytest.raises(RuntimeError, match=r"5 of 6 clients answered.*its update's norm"):
        run_strategy({**settings, "round.quorum": 1.0})


@pytest.mark.parametrize("name", METHODS)
def test_robust_aggregation_depends_on_method(flat, name):
    config = load_config({**flat, "run.strategy": name, "robust.reject": 4.0}, all_settings())
    if name not in ("cafedistill", "hetero_splitee", "local"):
        assert robust_settings(config, find_method(name)).active
        return
    with pytest.raises(UserError, match="cannot guard: set robust"):
        robust_settings(config, find_method(name))
    with pytest.raises(UserError, match="cannot guard: set robust"):
        read_config(config.flat())
    plain = read_config({**flat, "run.strategy": name})
    assert not robust_settings(plain, find_method(name)).active


def test_darkdistill_runs_with_median(run_strategy):
    small = {"darkdistill.batch": 8, "darkdistill.generator-channels": 4, "darkdistill.distill-steps": 2}
    run = run_strategy({**small, "run.strategy": "darkdistill", "robust.aggregation": "median", "run.rounds": 1})
    assert run.records[0].failures == {}
    assert all(value.isfinite().all() for value in run.strategy.model.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"robust.aggregation": "mode"}, "must be one of mean, trimmed-mean, median"),
        ({"robust.trim": 0.5}, "must be at least 0 and below 0.5"),
        ({"robust.reject": 0.5}, r"must be 0 \(off\) or above 1"),
        ({"robust.reject": float("nan")}, "must be a finite number, at least 0"),
    ],
)
def test_invalid_robust_settings_are_reported(flat, changes, message):
    with pytest.raises(UserError, match=message):
        read_config({**flat, **changes})

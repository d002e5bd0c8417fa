"""How a node handles an order, without a server."""

from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.messages import protocol
from common.messages.protocol import Payload, Task
from common.storage.model_file import load_model
from common.weights.folding import Fold
from strategies.configuration import read_config
from strategies.factory import make_strategy
from strategies.node import host
from strategies.node.local_training import LocalTraining

ALL_CLIENTS = tuple(Task(client, 1 + client // 2) for client in range(6))


@pytest.fixture
def ordered(flat):
    """Return an order as the server sends it, for all six clients and the whole model; `changes`: configuration."""

    def make(changes=None, tasks=ALL_CLIENTS):
        strategy = make_strategy(read_config({**flat, **(changes or {})}))
        order = replace(strategy._order(1), tasks=tasks, bits=30)
        return order, Payload({protocol.MODEL: strategy.part_state(3)})

    return make


def clients(ordered, node, changes=None):
    order, _ = ordered(changes)
    report = host.describe(replace(order, describe=(4, 5)), node)
    return report.roaming, [c.client for c in report.clients]


@pytest.mark.parametrize(
    ("node", "changes", "expected"),
    [
        ({}, {}, (True, [4, 5])),
        ({"partition-id": 3, "num-partitions": 9}, {}, (True, [4, 5])),
        ({"client-id": 2}, {}, (False, [2])),
        ({"client-ids": "0,3, 5", "partition-id": 7}, {}, (False, [0, 3, 5])),
        ({"partition-id": 1}, {"clients.per-node": 2}, (False, [2, 3])),
        ({"partition-id": 1}, {"clients.per-node": 4}, (False, [4, 5])),
        ({"partition-id": 9}, {"clients.per-node": 4}, (False, [])),
        ({}, {"clients.per-node": 4}, (False, [0, 1, 2, 3])),
    ],
)
def test_node_hosts_expected_clients(ordered, node, changes, expected):
    assert clients(ordered, node, changes) == expected


def test_client_reports_choice_and_reason(ordered):
    order, _ = ordered()
    by_mix = host.describe(replace(order, describe=(0, 2, 5)), {}).clients
    assert [(c.part, c.reason, c.refused) for c in by_mix] == [(d, "mix 0.34,0.33,0.33", "") for d in (1, 2, 3)]
    assert [c.num_examples for c in by_mix] == [32, 32, 32]
    (declared,) = host.describe(order, {"client-id": 0, "depth": 2}).clients
    assert (declared.part, declared.reason) == (2, "declared depth 2")
    (refused,) = host.describe(order, {"client-id": 0, "depth": 9}).clients
    assert (refused.part, refused.refused) == (0, "declared depth 9, but this run offers depth 1, 2, 3")
    (probed,) = host.describe(order, {"client-id": 0, "capacity": "auto"}).clients
    assert (probed.part, probed.reason) == (3, "the whole network fits")


def test_client_without_images_is_refused(ordered):
    skewed = {"data.partitioner": "dirichlet", "data.alpha": 0.001, "data.limit": 60, "clients.count": 30}
    order, _ = ordered(skewed, ())
    reports = host.describe(replace(order, describe=tuple(range(30))), {}).clients
    assert {c.refused for c in reports if c.num_examples == 0} == {"it has no training images"}
    assert all(c.refused == "" for c in reports if c.num_examples)


def test_clients_of_tier_are_folded_and_lone_client_is_not(ordered):
    tasks = (Task(0, 1), Task(1, 1), Task(2, 2))
    reply = host.train(*ordered(tasks=tasks), {})
    assert {d: (f.clients, f.weight) for d, f in reply.folds.items()} == {1: ([0, 1], 64)}
    assert set(reply.lone) == {2}
    assert [(r.client, r.part, r.num_examples, r.error) for r in reply.results] == [
        (0, 1, 32, ""), (1, 1, 32, ""), (2, 2, 32, ""),
    ]  # fmt: skip
    assert all(r.metrics["loss"] > 0 and r.seconds > 0 for r in reply.results)


def test_lone_client_quantised_on_server_equals_fold(ordered):
    def mean(tasks):
        reply = host.train(*ordered(tasks=tasks), {})
        fold = Fold(next(iter(reply.folds.values())).layout, 30) if reply.folds else None
        for part in reply.folds.values():
            fold.add(part)
        return fold, reply

    together, _ = mean((Task(0, 2), Task(1, 2)))
    server = Fold(together.layout, 30)
    for client in (1, 0):
        _, reply = mean((Task(client, 2),))
        server.add_state(reply.lone[client], 32, client)
    assert torch.equal(server.sums, together.sums)


def test_separate_models_are_never_folded(ordered):
    order, payload = ordered()
    reply = host.train(replace(order, fold=False), payload, {})
    assert reply.folds == {}
    assert sorted(reply.lone) == [0, 1, 2, 3, 4, 5]


def test_clients_do_not_affect_each_other(ordered):
    whole = host.train(*ordered(), {})
    alone = host.train(*ordered(tasks=(Task(5, 3),)), {})
    pair = host.train(*ordered(tasks=(Task(4, 3),)), {})
    fold = Fold(whole.folds[3].layout, 30)
    fold.add_state(alone.lone[5], 32, 5)
    fold.add_state(pair.lone[4], 32, 4)
    assert torch.equal(fold.sums, whole.folds[3].sums)


def test_arrays_of_order_are_not_changed(ordered):
    order, payload = ordered()
    before = payload.states[protocol.MODEL].floats.clone()
    host.train(order, payload, {})
    assert torch.equal(payload.states[protocol.MODEL].floats, before)


def test_training_keeps_number_of_threads(ordered):
    before = torch.get_num_threads()
    host.train(*ordered({"clients.threads": before + 1}), {})
    assert torch.get_num_threads() == before


def test_failed_client_is_reported_as_result(ordered, monkeypatch):
    train = LocalTraining.train

    def sometimes(self, job):
        if job.client in (1, 2):
            raise ValueError("bad luck")
        return train(self, job)

    monkeypatch.setattr(LocalTraining, "train", sometimes)
    reply = host.train(*ordered(), {})
    assert {r.client: r.error for r in reply.results if r.error} == dict.fromkeys((1, 2), "ValueError: bad luck")
    assert {d: f.clients for d, f in reply.folds.items()} == {1: [0], 2: [3], 3: [4, 5]}


def test_mismatched_arrays_fail_their_clients(ordered):
    order, _ = ordered(tasks=(Task(0, 1), Task(5, 3)))
    strategy_state = make_strategy(read_config({"run.name": "x", "network.name": "lenet", "clients.mix": "1,1,1"}))
    wrong = Payload({protocol.MODEL: strategy_state.part_state(1)})
    reply = host.train(order, wrong, {})
    assert all("expected shape" in r.error for r in reply.results)
    assert (reply.folds, reply.lone) == ({}, {})


def test_client_never_trains_deeper_than_node_declares(ordered):
    reply = host.train(*ordered(tasks=(Task(0, 2, samples=32), Task(1, 1, samples=32))), {"depth": 1})
    assert [r.error for r in reply.results] == ["UserError: asked for depth 2, but declared depth 1", ""]
    assert [(r.client, r.part) for r in reply.reports] == [(0, 1)]


@pytest.mark.parametrize("clients", [(0,), (0, 1)])
def test_extra_samples_do_not_count_before_announcement(ordered, clients):
    reply = host.train(*ordered(tasks=tuple(Task(client, 1, samples=10) for client in clients)), {"depth": 1})
    assert [r.num_examples for r in reply.results] == [10] * len(clients)
    assert [(r.client, r.part, r.num_examples) for r in reply.reports] == [(client, 1, 32) for client in clients]
    assert all(fold.weight == 10 * len(clients) for fold in reply.folds.values())


def test_stored_client_state_needs_committed_version(ordered):
    learned = {"objective.name": "l2w", "objective.l2w-hidden": 4}
    order, payload = ordered(learned, (Task(0, 2),))
    assert host.train(order, payload, {}).results[0].kept
    second = replace(order, round=2, tasks=(Task(0, 2, version=1),))
    assert host.train(second, payload, {}).results[0].error == ""
    lost = replace(order, round=3, tasks=(Task(0, 2, version=1),))
    assert host.train(lost, payload, {}).results[0].error == ""
    gone = replace(order, round=3, tasks=(Task(0, 2, version=2),))
    assert "its state of round 2 is not in" in host.train(gone, payload, {}).results[0].error


def test_evaluation_returns_exit_counts_of_every_client(ordered):
    reply = host.evaluate(*ordered(), {})
    for result in reply.results:
        scores = reply.client_arrays[result.client]
        assert (result.error, scores["exits"].shape) == ("", (result.part,))
        assert scores["examples"].tolist() == [8, 8]


def test_no_validation_images_give_no_counts(ordered):
    reply = host.evaluate(*ordered({"data.validation": 0.0}), {})
    assert [result.error for result in reply.results] == [""] * 6
    assert not any(reply.client_arrays.values())


def test_failed_evaluation_does_not_affect_other_clients(ordered):
    order, payload = ordered(tasks=(Task(0, 1), Task(99, 1), Task(1, 1)))
    reply = host.evaluate(order, payload, {})
    assert [bool(result.error) for result in reply.results] == [False, True, False]
    assert sorted(reply.client_arrays) == [0, 1]


def test_delivery_writes_one_file_per_depth(ordered, tmp_path):
    order, payload = ordered()
    facts = {"mean": [0.5], "std": [0.25], "policy": ""}
    host.deliver(replace(order, round_values=facts), payload, {"state": str(tmp_path / "node")})
    folder = tmp_path / "node" / "test"
    assert sorted(path.name for path in folder.iterdir()) == ["depth-1", "depth-2", "depth-3"]
    stored_model = load_model(folder / "depth-2")
    assert stored_model.normalizer.std == (0.25,)
    whole = payload.states[protocol.MODEL].state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in stored_model.network.state_dict().items())
    assert len(stored_model.policy.thresholds) == 1


def test_unreadable_configuration_is_reported(ordered):
    order, payload = ordered()
    with pytest.raises(UserError, match=r"future\.option is unknown"):
        host.train(replace(order, config='{"future.option": 1}'), payload, {})

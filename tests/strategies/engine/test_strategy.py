"""The round loop: faults, quorum, declared depths, resume, and the final models on the clients."""

from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from client.app import app as real_app
from common.data import load
from common.data.clients import Population, shared_data
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.paths import cache_root
from common.storage.client_store import ClientStore
from common.storage.model_file import load_model
from common.weights.flat import FlatState
from strategies.callbacks.base import Callback
from strategies.engine.rounds import QuorumError
from strategies.node.local_training import LocalTraining

HOME = {"clients.per-node": 1}
NODES = [{"partition-id": p} for p in range(6)]


def same(one, two) -> bool:
    return set(one) == set(two) and all(torch.equal(one[k], two[k]) for k in one)


class Tampered:
    """The real ClientApp, except that one client's replies to train orders are changed."""

    def __init__(self, client: int, change) -> None:
        self.client, self.change = client, change

    def __call__(self, message: Message, context) -> Message:
        answer = real_app(message, context)
        if message.metadata.message_type != protocol.TRAIN:
            return answer
        reply = protocol.unpack_reply(answer.content)
        if all(result.client != self.client for result in reply.results):
            return answer
        return Message(self.change(reply), reply_to=message)


def state_changed(change):
    def changed(reply: protocol.Reply):
        for client, state in reply.lone.items():
            tensors = {k: v.clone() for k, v in state.state_dict().items()}
            reply.lone[client] = FlatState.of(change(tensors))
        return protocol.pack_reply(reply)

    return changed


def broken_json(reply: protocol.Reply):
    content = protocol.pack_reply(reply)
    content["order"]["json"] = '{"results": 5}'
    return content


def nan(tensors):
    tensors["units.0.0.weight"][0] = float("nan")
    return tensors


FAULTS = {
    "nan": (state_changed(nan), "weights are not finite"),
    "range": (state_changed(lambda t: {k: v + 1e5 for k, v in t.items()}), "weights out of range"),
    "shape": (state_changed(lambda t: t | {"units.0.0.bias": torch.zeros(7)}), "first: units.0.0.bias"),
    "missing": (state_changed(lambda t: {k: v for k, v in t.items() if "exits" not in k}), "first: exits."),
    "unknown": (state_changed(lambda t: t | {"extra": torch.zeros(1)}), "first: extra"),
    "json": (broken_json, "malformed message"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_invalid_reply_is_left_out_and_reason_logged(run_strategy, flower_log, fault):
    change, reason = FAULTS[fault]
    run = run_strategy(HOME, NODES, Tampered(2, change))
    for record in run.records:
        assert list(record.failures) == [2]
        assert reason in record.failures[2]
        assert sum(record.clients.values()) == 5
    assert sum("client 2 is left out" in line and reason in line for line in flower_log) == 2
    assert all(v.isfinite().all() for v in run.strategy.model.values())


def failing(client: int, mistake):
    train = LocalTraining.train

    def patched(self, job):
        outcome = train(self, job)
        return mistake(outcome) if job.client == client else outcome

    return patched


def raises(outcome):
    raise RuntimeError("out of memory")


def diverges(outcome):
    outcome.state.floats[3] = float("inf")
    return outcome


@pytest.mark.parametrize(
    ("mistake", "reason"), [(raises, "RuntimeError: out of memory"), (diverges, "weights are not finite")]
)
def test_failed_client_does_not_affect_others(run_strategy, monkeypatch, mistake, reason):
    monkeypatch.setattr(LocalTraining, "train", failing(3, mistake))
    together = run_strategy()  # all six on one node
    assert [list(record.failures) for record in together.records] == [[3], [3]]
    assert reason in together.records[0].failures[3]
    apart = run_strategy(HOME, NODES)
    assert same(together.strategy.model, apart.strategy.model)


def test_full_disk_does_not_affect_other_clients(run_strategy, monkeypatch):
    save = ClientStore.save

    def full(self, client, round_, state):
        if client == 1:
            raise OSError(28, "No space left on device")
        save(self, client, round_, state)

    monkeypatch.setattr(ClientStore, "save", full)
    run = run_strategy({"objective.name": "l2w", "objective.l2w-hidden": 4})
    for record in run.records:
        assert list(record.failures) == [1]
        assert "No space left" in record.failures[1]
        assert sum(record.clients.values()) == 5
    assert run.strategy.committed == dict.fromkeys((0, 2, 3, 4, 5), 2)


def test_failed_node_is_reported_for_each_of_its_clients(run_strategy):
    def app(message, context):
        if message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] == 1:
            raise RuntimeError("the disk is gone")
        return real_app(message, context)

    run = run_strategy({"clients.per-node": 2, "run.rounds": 1}, NODES[:3], app)
    assert set(run.records[0].failures) == {2, 3}
    assert "its node failed" in run.records[0].failures[2]
    assert "the disk is gone" in run.records[0].failures[2]


class Swallowing(LocalGrid):
    """Drops every train order to the second node."""

    def push_messages(self, messages):
        ids = []
        for message in messages:
            context = self.contexts[message.metadata.dst_node_id]
            if message.metadata.message_type == protocol.TRAIN and context.node_config["partition-id"] == 1:
                ids.append("swallowed")
            else:
                ids += super().push_messages([message])
        return ids


def test_client_without_answer_is_left_out_after_deadline(run_strategy):
    run = run_strategy({**HOME, "run.rounds": 1}, NODES, grid=Swallowing, timeout=0.3)
    assert run.records[0].failures == {1: "did not answer in time"}
    assert sum(run.records[0].clients.values()) == 5
    assert 0.3 < run.records[0].seconds["clients"] < 5


@pytest.mark.parametrize(
    ("quorum", "needed", "enough"), [(0.5, 3, True), (0.51, 4, False), (1.0, 6, False), (0.0, 1, True)]
)
def test_quorum_decides_whether_run_continues(prepare_run, monkeypatch, quorum, needed, enough):
    train = LocalTraining.train

    def half(self, job):
        return raises(None) if job.client % 2 else train(self, job)

    monkeypatch.setattr(LocalTraining, "train", half)
    run = prepare_run({"round.quorum": quorum, "run.rounds": 1})
    if enough:
        run.strategy.start(run.grid)
        assert len(run.records) == 1
        return
    initial = {k: v.clone() for k, v in run.strategy.model.items()}
    with pytest.raises(QuorumError) as caught:
        run.strategy.start(run.grid)
    message = str(caught.value)
    assert f"round 1: 3 of 6 clients answered, round.quorum asks for {needed}" in message
    assert "run.resume" in message
    assert "RuntimeError: out of memory" in message
    assert run.failure == f"QuorumError: {message}"
    assert run.records == []
    assert same(run.strategy.model, initial)


def test_run_fails_without_any_answer(run_strategy, monkeypatch):
    monkeypatch.setattr(LocalTraining, "train", lambda self, job: raises(None))
    with pytest.raises(QuorumError, match="0 of 6 clients answered"):
        run_strategy({"round.quorum": 0.0})


class Spy:
    """Records (round, client, depth) of every train order."""

    def __init__(self) -> None:
        self.trained: list[tuple[int, int, int]] = []

    def __call__(self, message: Message, context) -> Message:
        if message.metadata.message_type == protocol.TRAIN:
            order, _ = protocol.unpack_order(message.content)
            self.trained += [(order.round, task.client, task.part) for task in order.tasks]
        return real_app(message, context)


def test_client_is_never_trained_deeper_than_declared(run_strategy):
    spy = Spy()
    nodes = [{"partition-id": p, "depth": 1 + p // 2} for p in range(6)]
    run = run_strategy({**HOME, "clients.mix": "0,0,1"}, nodes, spy)
    assert {(client, depth) for _, client, depth in spy.trained} == {(c, 1 + c // 2) for c in range(6)}
    assert run.records[0].clients == {1: 2, 2: 2, 3: 2}


def test_depth_one_leaves_deeper_layers_unchanged(run_strategy):
    spy = Spy()
    run = run_strategy({**HOME, "clients.mix": "0,0,1"}, [{"partition-id": p, "depth": 1} for p in range(6)], spy)
    assert {depth for _, _, depth in spy.trained} == {1}
    assert set(run.records[-1].clients) == {1}


def rerated(prepare_run, before: dict[str, Any], after: dict[str, Any]):
    """Run three rounds; client 5's node changes its declaration after the first."""
    spy = Spy()
    nodes: list[dict[str, Any]] = [*NODES[:5], {"partition-id": 5, **before}]
    run = prepare_run({**HOME, "run.rounds": 3}, nodes, spy)
    on_round = run.on_round

    def change(strategy, record):
        on_round(strategy, record)
        list(run.grid.contexts.values())[5].node_config.update(after)

    run.on_round = change
    run.strategy.start(run.grid)
    return run, [depth for _, client, depth in spy.trained if client == 5]


def test_lowered_depth_fails_once_and_then_applies(prepare_run, flower_log):
    run, asked = rerated(prepare_run, {"depth": 3}, {"depth": 1})
    assert asked == [3, 3, 1]
    assert [record.failures for record in run.records] == [
        {}, {5: "UserError: asked for depth 3, but declared depth 1"}, {},
    ]  # fmt: skip
    assert run.records[1].clients == {1: 2, 2: 2, 3: 1}
    assert run.records[2].clients == {1: 3, 2: 2, 3: 1}
    assert "client 5 chose depth 1: declared depth 1" in flower_log


def test_raised_depth_applies_from_next_round(prepare_run):
    run, asked = rerated(prepare_run, {"depth": 1}, {"depth": 3})
    assert asked == [1, 1, 3]
    assert all(record.failures == {} for record in run.records)


def test_client_without_capacity_any_more_gets_no_orders(prepare_run, flower_log):
    run, asked = rerated(prepare_run, {"memory": "1GB"}, {"memory": "1KB"})
    assert asked == [3, 3]
    assert "nothing fits" in run.records[1].failures[5]
    assert any("client 5 is left out: nothing fits" in line for line in flower_log)


def test_node_without_capacity_is_refused_and_logged(run_strategy, flower_log):
    spy = Spy()
    nodes = [{**node, "memory": "1KB"} if node["partition-id"] == 2 else node for node in NODES]
    run = run_strategy(HOME, nodes, spy)
    assert {client for _, client, _ in spy.trained} == {0, 1, 3, 4, 5}
    assert run.records[0].failures == {}
    refusals = [line for line in flower_log if "client 2 is left out: nothing fits: tier 1 needs" in line]
    assert len(refusals) == 1


def test_mistyped_capacity_is_refused_and_logged(run_strategy, flower_log):
    run_strategy(HOME, [*NODES[:5], {"partition-id": 5, "memory": "lots"}])
    assert any("client 5 is left out: memory='lots' cannot be read" in line for line in flower_log)


def test_run_fails_if_no_client_can_take_part(run_strategy):
    with pytest.raises(QuorumError, match="no client can take part"):
        run_strategy(HOME, [{**node, "memory": "1KB"} for node in NODES])


def test_unknown_client_id_is_refused_and_logged(run_strategy, flower_log):
    run = run_strategy({}, [{"client-id": 0}, {"client-ids": "2,77"}])
    assert set(run.strategy.committed) == set()
    assert sum(run.records[0].clients.values()) == 2
    assert any("client 77 is left out: client 77 does not exist: clients.count is 6" in line for line in flower_log)


def test_resumed_run_gives_same_weights(prepare_run):
    learned = {"objective.name": "l2w", "objective.l2w-hidden": 4, "objective.l2w-interval": 1, "clients.per-round": 4}
    whole = prepare_run({**learned, "run.name": "whole", "run.rounds": 3})
    whole.strategy.start(whole.grid)
    first = prepare_run({**learned, "run.name": "cut", "run.rounds": 3})
    first.strategy.start(first.grid, num_rounds=1)
    # round 2 was killed before its checkpoint: clients wrote states that were never committed
    killed = first.strategy.configure_train(2, None, None, first.grid)
    assert not any(reply.has_error() for reply in first.grid.send_and_receive(killed))
    second = prepare_run({**learned, "run.name": "cut", "run.rounds": 3})
    second.strategy.model = first.strategy.model
    second.strategy.round, second.strategy.committed = 1, first.strategy.committed
    second.strategy.roster.reports = first.strategy.roster.reports
    second.strategy.start(second.grid)
    assert [record.round for record in second.records] == [2, 3]
    assert same(second.strategy.model, whole.strategy.model)


def test_strategy_is_a_flower_strategy(prepare_run):
    run = prepare_run()
    strategy, grid = run.strategy, run.grid
    messages = strategy.configure_train(1, strategy.arrays(), None, grid)
    arrays, metrics = strategy.aggregate_train(1, grid.send_and_receive(messages))
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(metrics, MetricRecord)
    assert set(arrays.to_torch_state_dict()) == set(strategy.network.state_dict())
    assert metrics["loss"] > 0
    assert strategy.configure_evaluate(1, arrays, None, grid) == []


def test_start_takes_arrays_and_function_and_returns_result(prepare_run):
    run, other = prepare_run(), prepare_run({"run.seed": 5})
    seen = []

    def evaluate(round_: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(round_)
        return MetricRecord({"norm": float(sum(v.float().norm() for v in arrays.to_torch_state_dict().values()))})

    result = run.strategy.start(run.grid, initial_arrays=other.strategy.arrays(), num_rounds=2, evaluate_fn=evaluate)
    assert seen == [1, 2]
    assert set(result.evaluate_metrics_serverapp) == {1, 2}
    assert set(result.train_metrics_clientapp[1]) == {"loss"}
    plain = prepare_run()
    plain.strategy.start(plain.grid)
    assert not same(run.strategy.model, plain.strategy.model)


def test_learning_rate_decays_per_round(prepare_run):
    strategy = prepare_run({"train.lr": 0.1, "train.lr-decay": 0.5}).strategy
    assert [strategy.lr(round_) for round_ in (0, 1, 2, 3)] == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_node_gets_arrays_of_deepest_client_once(prepare_run):
    run = prepare_run({"clients.per-node": 2}, NODES[:3])
    messages = run.strategy.configure_train(1, None, None, run.grid)
    by_clients = {}
    for message in messages:
        order, payload = protocol.unpack_order(message.content)
        assert list(payload.states) == ["model"]
        by_clients[tuple(task.client for task in order.tasks)] = payload.states["model"].layout
    assert by_clients == {(2 * d, 2 * d + 1): run.strategy.layouts[d + 1] for d in range(3)}


def test_client_evaluation_counts_add_up_exactly(run_strategy):
    changes = {"server.clients-evaluate-every": 2, "run.rounds": 3, "clients.mix": "0.34,0.33,0.33"}
    runs = [
        run_strategy(changes),
        run_strategy({**changes, "clients.per-node": 1}, NODES),
        run_strategy({**changes, "clients.per-node": 4}, NODES[:2]),
    ]
    assert [bool(record.client_accuracy) for record in runs[0].records] == [False, True, False]
    assert runs[0].records[1].client_accuracy == runs[1].records[1].client_accuracy
    assert runs[0].records[1].client_accuracy == runs[2].records[1].client_accuracy
    # by hand, after round 2
    short = run_strategy({**changes, "run.rounds": 2})
    strategy = short.strategy
    people = Population(strategy.config.data, 6, strategy.config.run.seed)
    shares: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for client in range(6):
        own = shared_data(people, client, torch.device("cpu"))
        with torch.inference_mode():
            outputs = strategy.global_network().eval()(own.validation_x)
        for e in range(1, strategy.roster.reports[client].part + 1):
            shares[e].append(float((outputs[e - 1].argmax(1) == own.validation_y).double().mean()))
    assert [len(shares[e]) for e in shares] == [6, 4, 2]
    expected = [sum(shares[e]) / len(shares[e]) for e in shares]
    assert short.records[1].client_accuracy["exits"] == pytest.approx(expected, abs=1e-12)
    assert short.records[1].client_accuracy["own_test"] is False


def test_failed_evaluation_does_not_end_run(run_strategy, flower_log):
    def app(message, context):
        answer = real_app(message, context)
        if message.metadata.message_type == protocol.EVALUATE:
            if context.node_config["partition-id"] == 0:
                raise RuntimeError("no images")
            if context.node_config["partition-id"] == 1:
                answer.content["order"]["json"] = "{}"
        return answer

    run = run_strategy({**HOME, "run.rounds": 1, "server.clients-evaluate-every": 1}, NODES, app)
    assert run.records[0].client_accuracy["clients"] == 4
    assert sum("could not evaluate" in line for line in flower_log) == 2


def test_every_client_gets_loadable_model_after_last_round(run_strategy, tmp_path):
    run = run_strategy({"server.evaluate-every": 2, "run.name": "delivered"})
    source = load(run.strategy.config.data, cache_root())
    for depth in (1, 2, 3):
        stored_model = load_model(tmp_path / "clients" / "delivered" / f"depth-{depth}")
        assert same(
            stored_model.network.state_dict(), {k: run.strategy.model[k] for k in stored_model.network.state_dict()}
        )
        assert len(stored_model.network.exit_positions) == depth
        assert stored_model.classes == source.classes
        x = stored_model.normalizer(source.test.inputs[:8])
        assert torch.equal(x, run.strategy.normalizer(source.test.inputs[:8]))
        with torch.inference_mode():
            expected = run.strategy.global_network().eval()(x)
            assert all(torch.equal(a, b) for a, b in zip(stored_model.network(x), expected, strict=False))
    thresholds = run.records[-1].accuracy["calibrated"]["thresholds"]
    assert list(stored_model.policy.thresholds) == thresholds


def test_node_state_folder_holds_its_model(run_strategy, tmp_path):
    nodes = [{**node, "state": str(tmp_path / f"node-{node['partition-id']}")} for node in NODES]
    run_strategy(HOME, nodes)
    for client, depth in enumerate((1, 1, 2, 2, 3, 3)):
        folder = tmp_path / f"node-{client}" / "test"
        assert [path.name for path in folder.iterdir()] == [f"depth-{depth}"]


def test_phases_and_traffic_are_recorded(run_strategy):
    run = run_strategy({"server.evaluate-every": 1})
    bytes_ = 4 * sum(v.numel() for v in run.strategy.model.values())
    for record in run.records:
        assert {"discover", "pack", "clients", "server", "evaluate", "round"} <= set(record.seconds)
        assert sum(v for k, v in record.seconds.items() if k != "round") <= record.seconds["round"]
        assert bytes_ < record.traffic["down"] < 2 * bytes_  # one node: the deepest tier once
        assert 2 * bytes_ < record.traffic["up"] < 4 * bytes_  # a sum of 64-bit numbers for each tier


def test_lone_client_sends_only_model_bytes(run_strategy):
    run = run_strategy({**HOME, "clients.count": 1, "clients.per-round": 1, "clients.mix": "0,0,1"}, NODES[:1])
    bytes_ = 4 * sum(v.numel() for v in run.strategy.model.values())
    assert bytes_ < run.records[0].traffic["up"] < 1.1 * bytes_


@pytest.mark.parametrize("method", ["ditto", "darkdistill"])
def test_flowers_own_loop_gives_the_same_bits_and_commits_what_clients_keep(prepare_run, tmp_path, method):
    """The own loop is made of Flower's four moments, so nothing of a round may happen beside them."""
    changes = {"run.strategy": method, "run.name": "own", "server.clients-evaluate-every": 1}
    own = prepare_run(changes)
    own.result = own.strategy.start(own.grid)
    flowers = prepare_run({**changes, "run.name": "flowers"})
    result = Strategy.start(flowers.strategy, flowers.grid, flowers.strategy.arrays(), num_rounds=2)
    assert same(own.strategy.model, flowers.strategy.model)
    assert same(result.arrays.to_torch_state_dict(), own.strategy.model)
    assert flowers.strategy.committed == own.strategy.committed
    assert flowers.strategy.trained == own.strategy.trained
    assert bool(own.strategy.committed) == (method == "ditto")
    assert result.train_metrics_clientapp == own.result.train_metrics_clientapp
    assert result.evaluate_metrics_clientapp == own.result.evaluate_metrics_clientapp
    assert sorted(result.evaluate_metrics_clientapp) == [1, 2]


class Ending(Callback):
    """Notes how the run ended; may fail then, or after a round."""

    def __init__(self, at_end: str = "", after_round: str = "") -> None:
        self.at_end, self.after_round, self.ends = at_end, after_round, list[str]()

    def on_round(self, strategy, record) -> None:
        if self.after_round:
            raise RuntimeError(self.after_round)

    def on_end(self, strategy, failure: str) -> None:
        self.ends.append(failure)
        if self.at_end:
            raise ConnectionError(self.at_end)


def test_callback_that_fails_at_the_end_neither_stops_the_others_nor_hides_the_runs_failure(prepare_run):
    first, second, last = Ending("no route"), Ending("disk full"), Ending()
    run = prepare_run({"run.rounds": 1})
    run.strategy.callbacks = [first, second, last]
    with pytest.raises(ConnectionError, match="no route"):
        run.strategy.start(run.grid)
    assert first.ends == second.ends == last.ends == [""]

    run = prepare_run({"run.rounds": 1})
    run.strategy.callbacks = [Ending("no route"), Ending(after_round="the reason"), last]
    with pytest.raises(RuntimeError, match="the reason"):
        run.strategy.start(run.grid)
    assert last.ends == ["", "RuntimeError: the reason"]


def test_models_of_a_round_are_let_go_once_they_are_merged(prepare_run):
    run = prepare_run({"run.strategy": "median", "run.rounds": 1})
    run.strategy.start(run.grid)
    update = run.strategy._update
    assert (bool(update.results), update.states, update.tiers, update.client_arrays) == (True, {}, {}, {})

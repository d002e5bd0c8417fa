"""Replies after the deadline are dropped, or folded into a later round with a staleness weight."""

import threading
import time

import pytest
import torch
from flwr.app import Message

from client.app import app as real_app
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientReport, ClientResult, Reply
from common.storage.client_store import ClientStore
from common.weights.flat import FlatState, Layout
from common.weights.folding import Fold, fraction_bits
from strategies.engine import late
from strategies.engine import messaging as exchange
from strategies.engine.aggregation import RoundCollector
from strategies.engine.late import Latecomers

NODES = [{"partition-id": p} for p in range(6)]  # clients 4 and 5 are of depth 3
SLOW = 5
SETTINGS = {"clients.per-node": 1, "run.rounds": 4, "data.limit": 300}
KEEPING = {"objective.name": "l2w", "objective.l2w-hidden": 4, "objective.l2w-interval": 1}
DEADLINE = 0.3


class Clock:
    """Advances by each sleep, and a little at each reading, so that a busy machine makes no client late."""

    TICK = 0.01

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += self.TICK
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    made = Clock()
    for module in (exchange, late):
        monkeypatch.setattr(module, "time", made)
    return made


class Watched:
    """The real ClientApp; records the round, client and version of every order, and the resulting model."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []  # round, client, version
        self.models: dict[tuple[int, int], tuple[int, FlatState]] = {}  # (round, client) -> samples, model

    def __call__(self, message: Message, context) -> Message:
        answer = real_app(message, context)
        if message.metadata.message_type == protocol.TRAIN:
            (task,) = (order := protocol.unpack_order(message.content)[0]).tasks
            self.asked.append((order.round, task.client, task.version))
            reply = protocol.unpack_reply(answer.content)
            if task.client in reply.lone:
                self.models[order.round, task.client] = (reply.results[0].num_examples, reply.lone[task.client])
        return answer

    def rounds_of(self, client: int) -> list[int]:
        return [round_ for round_, asked, _ in self.asked if asked == client]


class Withholding(LocalGrid):
    """Holds the slow client's reply to round 1 back until orders of round `until` are sent."""

    until = 2

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[str, Message] = {}

    def push_messages(self, messages):
        messages = list(messages)
        ids = list(super().push_messages(messages))
        for message, name in zip(messages, ids, strict=True):
            if message.metadata.message_type != protocol.TRAIN:
                continue
            round_ = protocol.unpack_order(message.content)[0].round
            if round_ == 1 and self.contexts[message.metadata.dst_node_id].node_config["partition-id"] == SLOW:
                self.held[name] = self.replies.pop(name)
            elif round_ == self.until:
                self.replies |= self.held
                self.held = {}
        return ids


class Long(Withholding):
    until = 3


class Never(Withholding):
    until = 0


def test_late_reply_is_dropped_and_counted_once_by_default(run_strategy):
    app = Watched()
    run = run_strategy({**SETTINGS, "run.rounds": 2}, NODES, app, Withholding, timeout=DEADLINE)
    assert [record.failures for record in run.records] == [{SLOW: "did not answer in time"}, {}]
    assert [record.round for record in run.records] == [1, 2]
    assert [sum(record.clients.values()) for record in run.records] == [5, 6]
    assert [list(record.late) for record in run.records] == [[], []]
    assert app.rounds_of(SLOW) == [1, 2]

    def failing(message, context):
        late = context.node_config["partition-id"] == SLOW and message.metadata.group_id == "1"
        if message.metadata.message_type == protocol.TRAIN and late:
            raise RuntimeError("no power")
        return real_app(message, context)

    reference = run_strategy({**SETTINGS, "run.rounds": 2}, NODES, failing)
    assert all(torch.equal(run.strategy.model[key], value) for key, value in reference.strategy.model.items())


@pytest.mark.parametrize(("grid", "rounds_late"), [(Withholding, 1), (Long, 2)])
def test_late_reply_is_weighted_by_staleness(prepare_run, grid, rounds_late):
    app = Watched()
    run = prepare_run({**SETTINGS, "run.rounds": 1 + rounds_late, "round.staleness": 0.5}, NODES, app, grid)
    run.strategy.start(run.grid, timeout=3 * DEADLINE)
    last = 1 + rounds_late
    assert [list(record.late) for record in run.records] == [[]] * rounds_late + [[SLOW]]
    assert [list(record.failures) for record in run.records] == [[SLOW]] + [[]] * rounds_late
    assert app.rounds_of(SLOW) == [1]  # busy in the rounds after
    assert run.records[-1].clients == {1: 2, 2: 2, 3: 1}
    assert run.strategy.trained == set(range(6))
    (ours, fresh), (theirs, stale) = app.models[last, 4], app.models[1, SLOW]
    share = round(theirs * 0.5**rounds_late)
    deepest = set(run.strategy.layouts[3].keys) - set(run.strategy.layouts[2].keys)
    assert deepest
    for key, value in fresh.state_dict().items():
        if key in deepest:  # the only other client that holds these is SLOW
            mean = (ours * value.double() + share * stale.state_dict()[key].double()) / (ours + share)
            assert torch.allclose(run.strategy.model[key].double(), mean, atol=1e-6), key
            assert not torch.allclose(run.strategy.model[key], value, atol=1e-6), key


def test_late_client_state_is_committed_with_its_reply(run_strategy, tmp_path):
    app = Watched()
    run = run_strategy({**SETTINGS, **KEEPING, "round.staleness": 0.5}, NODES, app, Withholding, timeout=DEADLINE)
    assert [list(record.late) for record in run.records] == [[], [SLOW], [], []]
    assert [list(record.failures) for record in run.records] == [[SLOW], [], [], []]
    assert [(round_, version) for round_, client, version in app.asked if client == SLOW] == [(1, 0), (3, 1), (4, 3)]
    assert [(round_, version) for round_, client, version in app.asked if client == 4] == [
        (1, 0),
        (2, 1),
        (3, 2),
        (4, 3),
    ]
    assert run.strategy.committed == dict.fromkeys(range(6), 4)
    store = ClientStore(tmp_path / "clients", "test")
    assert store.load(SLOW, 4, prune=False).tensors


def test_late_client_state_is_discarded_by_default(run_strategy):
    app = Watched()
    run = run_strategy({**SETTINGS, **KEEPING}, NODES, app, Withholding, timeout=DEADLINE)
    assert [version for _, client, version in app.asked if client == SLOW] == [0, 0, 2, 3]
    assert run.strategy.committed == dict.fromkeys(range(6), 4)


def test_busy_client_is_not_asked_to_evaluate(run_strategy):
    asked = []

    def app(message, context):
        if message.metadata.message_type == protocol.EVALUATE:
            asked.append((message.metadata.group_id, context.node_config["partition-id"]))
        return real_app(message, context)

    settings = {**SETTINGS, "round.staleness": 0.5, "server.clients-evaluate-every": 1, "run.rounds": 3}
    run_strategy(settings, NODES, app, Long, timeout=DEADLINE)
    assert {round_ for round_, node in asked if node == SLOW} == {"3"}
    assert {round_ for round_, node in asked if node != SLOW} == {"1", "2", "3"}


def test_client_that_never_answers_is_asked_again(run_strategy):
    app = Watched()
    settings = {**SETTINGS, **KEEPING, "round.staleness": 1.0}
    run = run_strategy(settings, NODES, app, Never, timeout=2.5 * Clock.TICK)
    assert run.records[0].failures == {SLOW: "did not answer in time"}
    assert all(record.late == [] for record in run.records)
    again = app.rounds_of(SLOW)[1]
    assert again in (2, 3)
    assert (again, SLOW, 0) in app.asked


def test_invalid_late_reply_is_dropped(run_strategy, flower_log):
    def app(message, context):
        answer = real_app(message, context)
        if message.metadata.group_id == "1" and context.node_config["partition-id"] == SLOW:
            reply = protocol.unpack_reply(answer.content)
            reply.lone[SLOW].floats[0] = float("nan")
            return Message(protocol.pack_reply(reply), reply_to=message)
        return answer

    run = run_strategy({**SETTINGS, "round.staleness": 0.5}, NODES, app, Withholding, timeout=DEADLINE)
    assert [list(record.late) for record in run.records] == [[], [], [], []]
    assert any("answered round 1 late: weights are not finite" in line for line in flower_log)
    assert [sum(record.clients.values()) for record in run.records] == [5, 5, 6, 6]
    assert all(value.isfinite().all() for value in run.strategy.model.values())


@pytest.mark.parametrize("staleness", [0.0, 0.5])
def test_slow_node_on_real_threads(run_strategy, monkeypatch, clock, staleness):
    """Nodes run on threads; one works until the others are in the next round."""
    turn, next_round, done, in_time = threading.Lock(), threading.Event(), threading.Event(), set[int]()

    def app(message, context):
        if message.metadata.message_type == protocol.TRAIN:
            if of_slow(message, context):
                next_round.wait(60)
            elif message.metadata.group_id == "2":
                next_round.set()
                done.wait(60)
        with turn:  # nodes of one process share their networks
            return real_app(message, context)

    def of_slow(message, context) -> bool:
        return (context.node_config["partition-id"], message.metadata.group_id) == (SLOW, "1")

    class Threads(LocalGrid):
        def __init__(self, *args) -> None:
            super().__init__(*args, concurrent=True)

        def _run(self, instruction):
            super()._run(instruction)
            context = self.contexts[instruction.metadata.dst_node_id]
            if instruction.metadata.message_type == protocol.TRAIN:
                if of_slow(instruction, context):
                    done.set()
                elif instruction.metadata.group_id == "1":
                    in_time.add(instruction.metadata.dst_node_id)

    def sleep(seconds: float) -> None:
        time.sleep(0.01)
        if len(in_time) == len(NODES) - 1 and not next_round.is_set():  # the first round, without the slow one
            clock.now += seconds

    monkeypatch.setattr(clock, "TICK", 0.0)
    monkeypatch.setattr(clock, "sleep", sleep)

    run = run_strategy({**SETTINGS, "round.staleness": staleness}, NODES, app, Threads, timeout=3.0)
    assert [record.round for record in run.records] == [1, 2, 3, 4]
    assert [list(record.failures) for record in run.records] == [[SLOW], [], [], []]
    assert [client for record in run.records for client in record.late] == ([SLOW] if staleness else [])
    assert run.records[1].clients == {1: 2, 2: 2, 3: 1 if staleness else 2}
    assert run.records[-1].clients == {1: 2, 2: 2, 3: 2}


LAYOUT = Layout((("w", (2,)),), (("n", ()),))


def test_late_sum_has_expected_weight():
    """Two clients (10 and 20 samples), two rounds late at 0.5: weight 8 (from 7.5), beside 24 fresh samples."""
    bits, reports = fraction_bits(30), [ClientReport(c, 1, "", n) for c, n in ((0, 10), (1, 20))]
    latecomers = Latecomers(0.5, {1: LAYOUT}, lambda client: client.part, averages=True)
    latecomers.expect(1, bits, 60.0, {"first": reports})
    assert (latecomers.clients, latecomers.samples, latecomers.lives) == ({0, 1}, 30, 2)
    fold = Fold(LAYOUT, bits)
    for client, value in ((0, 3.0), (1, 6.0)):
        state = FlatState(LAYOUT, torch.full((2,), value), torch.tensor([client]))
        fold.add_state(state, reports[client].num_examples, client)
    results = [ClientResult(c, 1, n, kept=True) for c, n in ((0, 10), (1, 20))]
    content = protocol.pack_reply(Reply(results, folds={1: fold}))
    LocalGrid(None, [])  # messages need a grid in the process
    order = Message(content, dst_node_id=1, message_type=protocol.TRAIN)
    order.metadata.__dict__["_message_id"] = "first"
    collector = RoundCollector({1: LAYOUT}, fraction_bits(24 + latecomers.samples), {2: 1}, {2: 24})
    fresh = FlatState(LAYOUT, torch.tensor([1.0, 0.0]), torch.tensor([9]))
    collector.add(Reply([ClientResult(2, 1, 24)], lone={2: fresh}), [2])
    assert latecomers.take(Message(content, reply_to=order), collector, 3)
    assert latecomers.clients == set()
    update = collector.finish()
    assert update.tiers[1].state["w"].tolist() == pytest.approx([(8 * 5 + 24) / 32, 8 * 5 / 32])
    assert update.tiers[1].state["n"] == 9
    assert (update.tiers[1].weight, update.tiers[1].clients) == (32, (0, 1, 2))
    assert list(update.results) == [2]
    assert {client: round_ for client, (round_, _) in update.late.items()} == {0: 1, 1: 1}
    assert not latecomers.take(Message(content, reply_to=order), collector, 3)


@pytest.mark.parametrize("changes", [{"run.strategy": "darkdistill"}, {"robust.reject": 4.0}])
def test_staleness_is_refused_where_unsupported(prepare_run, changes):
    with pytest.raises(UserError, match="late answers have a place only where models are averaged"):
        prepare_run({**SETTINGS, **changes, "round.staleness": 0.5})
    assert prepare_run({**SETTINGS, **changes}).strategy.late.lives == 1

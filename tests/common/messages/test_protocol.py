import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientReport, ClientResult, NodeReport, Order, Payload, Reply, Task
from common.weights.flat import FlatState, Layout
from common.weights.folding import Fold

LAYOUT = Layout((("a.weight", (2, 3)), ("b", ())), (("n", ()),))


def flat(offset: float = 0.0) -> FlatState:
    return FlatState(LAYOUT, torch.arange(7.0) + offset, torch.tensor([2**40]))


ORDER = Order(
    run="r", config='{"run.seed": 1}', round=3, bits=39, fold=False, network="{}", classes=("a", "b"),
    costs="{}", describe=(1, 2), tasks=(Task(4, 2, 1, "model", 30, {"k": [1, 2]}), Task(5, 1)),
    round_values={"lr": 0.1},
)  # fmt: skip
PAYLOAD = Payload(
    {"model": flat(), "other": flat(10)},
    {4: {"head": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array([3, 1])}, 5: {"head": np.zeros(0, "f")}},
)


def reply() -> Reply:
    fold = Fold(LAYOUT, 20)
    fold.add_state(flat(), 5, 1)
    fold.add_state(flat(1), 2, 7)
    return Reply(
        [ClientResult(1, 2, 5, 0.5, "", True, {"loss": 1.25}), ClientResult(2, 1, error="UserError: no")],
        [ClientReport(2, 0, "none", 4, "nothing fits")],
        {2: fold},
        {9: flat(3)},
        {1: {"difficulty": np.array([0.5, 0.25], dtype=np.float16)}},
    )


def same_state(one: FlatState, two: FlatState) -> bool:
    return one.layout == two.layout and torch.equal(one.floats, two.floats) and torch.equal(one.counters, two.counters)


def same_entries(one, two) -> bool:
    return {c: set(v) for c, v in one.items()} == {c: set(v) for c, v in two.items()} and all(
        np.array_equal(a, two[c][k]) and a.dtype == two[c][k].dtype and a.shape == two[c][k].shape
        for c, v in one.items()
        for k, a in v.items()
    )


def check_order(order: Order, payload: Payload) -> None:
    assert order == ORDER
    assert set(payload.states) == {"model", "other"}
    assert all(same_state(payload.states[name], state) for name, state in PAYLOAD.states.items())
    assert same_entries(payload.client_arrays, PAYLOAD.client_arrays)


def check_reply(got: Reply) -> None:
    sent = reply()
    assert (got.results, got.reports) == (sent.results, sent.reports)
    assert set(got.folds) == {2}
    fold, expected = got.folds[2], sent.folds[2]
    assert (fold.layout, fold.bits, fold.weight, fold.clients) == (LAYOUT, 20, 7, [1, 7])
    assert torch.equal(fold.sums, expected.sums)
    assert torch.equal(fold.counters, expected.counters)
    assert set(got.lone) == {9}
    assert same_state(got.lone[9], flat(3))
    assert same_entries(got.client_arrays, sent.client_arrays)


def test_an_order_comes_back():
    check_order(
        *protocol.unpack_order(
            protocol.pack_order(
                ORDER, {k: protocol.pack_state(v) for k, v in PAYLOAD.states.items()}, PAYLOAD.client_arrays
            )
        )
    )


def test_an_order_without_arrays():
    order, payload = protocol.unpack_order(protocol.pack_order(Order("r", "{}")))
    assert order == Order("r", "{}")
    assert (payload.states, payload.client_arrays) == ({}, {})


def test_a_report_comes_back():
    report = NodeReport(3, False, (ClientReport(1, 2, "because", 10), ClientReport(2, 0, "no", 0, "no")))
    assert protocol.unpack_report(protocol.pack_report(report)) == report


@pytest.mark.parametrize("client", [-1, 2**32, 2**64])
def test_a_client_id_that_no_stream_can_carry(client):
    report = NodeReport(3, False, (ClientReport(client, 2, "because", 10),))
    with pytest.raises(ValueError, match="ids are at least 0 and below 4294967296"):
        protocol.unpack_report(protocol.pack_report(report))


def test_a_reply_comes_back():
    check_reply(protocol.unpack_reply(protocol.pack_reply(reply())))


def test_an_empty_fold_is_not_sent():
    content = protocol.pack_reply(Reply([], folds={1: Fold(LAYOUT, 20)}))
    assert list(content) == ["order"]


def test_everything_survives_the_wire():
    """Through Flower's own serialisation, both ways."""

    def app(message: Message, context) -> Message:
        check_order(*protocol.unpack_order(message.content))
        return Message(protocol.pack_reply(reply()), reply_to=message)

    grid = LocalGrid(app, [{}])
    node = next(iter(grid.get_node_ids()))
    content = protocol.pack_order(
        ORDER, {k: protocol.pack_state(v) for k, v in PAYLOAD.states.items()}, PAYLOAD.client_arrays
    )
    (answer,) = grid.send_and_receive([Message(content, dst_node_id=node, message_type=protocol.TRAIN)])
    assert not answer.has_error(), answer.error
    check_reply(protocol.unpack_reply(answer.content))


def test_a_received_state_may_be_changed_in_place():
    _, payload = protocol.unpack_order(
        protocol.pack_order(
            ORDER, {k: protocol.pack_state(v) for k, v in PAYLOAD.states.items()}, PAYLOAD.client_arrays
        )
    )
    payload.states["model"].floats.add_(1)
    got = protocol.unpack_reply(protocol.pack_reply(reply()))
    got.folds[2].sums.add_(1)


def test_a_model_travels_as_two_arrays_however_many_layers_it_has():
    state = FlatState.of({f"layer{i}": torch.ones(3) for i in range(100)})
    content = protocol.pack_order(ORDER, {"model": protocol.pack_state(state)})
    assert sum(len(record) for record in content.array_records.values()) == 2


def test_message_bytes_count_the_arrays():
    LocalGrid(None, [])
    small = Message(protocol.pack_order(ORDER), dst_node_id=1, message_type=protocol.TRAIN)
    state = FlatState(Layout((("a", (1000,)),)), torch.zeros(1000), torch.zeros(0, dtype=torch.int64))
    large = Message(
        protocol.pack_order(ORDER, {"model": protocol.pack_state(state)}), dst_node_id=1, message_type=protocol.TRAIN
    )
    difference = protocol.message_bytes(large) - protocol.message_bytes(small)
    assert 4000 < difference < 4400


def text(**values) -> ConfigRecord:
    return ConfigRecord({"json": json.dumps(values)})


HEAD = {"run": "r", "config": "{}", "tasks": [], "classes": [], "describe": []}


@pytest.mark.parametrize(
    "record",
    [
        None,
        ConfigRecord({}),
        ConfigRecord({"json": 3}),
        ConfigRecord({"json": "{"}),
        ConfigRecord({"json": "[]"}),
        text(),
        text(**(HEAD | {"unknown": 1})),
        text(**{k: v for k, v in HEAD.items() if k != "run"}),
        text(**(HEAD | {"run": 5})),
        text(**(HEAD | {"round": "3"})),
        text(**(HEAD | {"fold": 1})),
        text(**(HEAD | {"round": True})),
        text(**(HEAD | {"method": [1]})),
        text(**(HEAD | {"tasks": 5})),
        text(**(HEAD | {"tasks": [3]})),
        text(**(HEAD | {"tasks": [{"client": 1}]})),
        text(**(HEAD | {"tasks": [{"client": "1", "depth": 1}]})),
        text(**(HEAD | {"classes": None})),
    ],
)
def test_a_malformed_order_is_a_value_error(record):
    content = RecordDict({} if record is None else {"order": record})
    with pytest.raises(ValueError):
        protocol.unpack_order(content)


@pytest.mark.parametrize(
    "record",
    [
        text(partition=1, roaming=True),
        text(partition=1, roaming="yes", clients=[]),
        text(partition=1, roaming=True, clients=[{"client": 1}]),
        text(partition=1, roaming=True, clients=[[1]]),
        text(partition=1.5, roaming=True, clients=[]),
    ],
)
def test_a_malformed_report_is_a_value_error(record):
    with pytest.raises(ValueError, match="malformed"):
        protocol.unpack_report(RecordDict({"order": record}))


def replaced(name: str, record) -> RecordDict:
    content = protocol.pack_reply(reply())
    del content[name]
    if record is not None:
        content[name] = record
    return content


def arrays(**values) -> ArrayRecord:
    return ArrayRecord({key: Array(np.asarray(value)) for key, value in values.items()})


FOLD_INDEX = {"layout": LAYOUT.to_json(), "bits": 20, "weight": 7, "clients": [1, 7]}


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("order", text(results=[])),
        ("order", text(results=[{"client": 1}], reports=[])),
        ("order", text(results=[{"client": 1, "depth": 1, "num_examples": "many"}], reports=[])),
        ("order", text(results={}, reports=3)),
        ("fold.2.index", None),
        ("fold.2.index", text(**{k: v for k, v in FOLD_INDEX.items() if k != "weight"})),
        ("fold.2.index", text(**(FOLD_INDEX | {"weight": "x"}))),
        ("fold.2.index", text(**(FOLD_INDEX | {"clients": 4}))),
        ("fold.2.index", text(**(FOLD_INDEX | {"layout": "[]"}))),
        ("fold.2.index", text(**(FOLD_INDEX | {"layout": Layout((("a", (3,)),)).to_json()}))),
        ("fold.2", arrays(sums=np.zeros(7, np.int64))),
        ("fold.2", arrays(sums=np.zeros(7, np.float32), counters=np.zeros(1, np.int64))),
        ("fold.2", arrays(sums=np.zeros((7, 1), np.int64), counters=np.zeros(1, np.int64))),
        ("fold.2", arrays(sums=np.zeros(6, np.int64), counters=np.zeros(1, np.int64))),
        ("lone.9", arrays(floats=np.zeros(7, np.float64), counters=np.zeros(1, np.int64))),
        ("lone.9", arrays(floats=np.zeros(8, np.float32), counters=np.zeros(1, np.int64))),
        ("lone.9.index", None),
        ("lone.9.index", text(a=1)),
        ("entries", None),
        ("entries", arrays(float32=np.zeros(2, np.float32))),
        ("entries", arrays(float16=np.zeros(1, np.float16))),
        ("entries.index", ConfigRecord({"json": "[[1, 2]]"})),
        ("entries.index", ConfigRecord({"json": "5"})),
        ("entries.index", ConfigRecord({"json": '[[1, "difficulty", "float16", ["x"]]]'})),
    ],
)
def test_a_malformed_reply_is_a_value_error(name, record):
    content = replaced(name, record)
    if name == "entries" and record is None:
        assert protocol.unpack_reply(content).client_arrays == {}
        return
    with pytest.raises(ValueError):
        protocol.unpack_reply(content)


def test_arrays_beside_the_models_may_be_bounded():
    content = protocol.pack_reply(reply())
    size = sum(array.nbytes for arrays in reply().client_arrays.values() for array in arrays.values())
    assert size
    assert same_entries(protocol.unpack_reply(content, client_array_bytes=size).client_arrays, reply().client_arrays)
    with pytest.raises(ValueError, match=f"{size} bytes of arrays came beside the models, where at most {size - 1}"):
        protocol.unpack_reply(content, client_array_bytes=size - 1)


def test_a_number_that_is_no_number():
    content = protocol.pack_reply(reply())
    content["lone.x"], content["lone.x.index"] = content["lone.9"], content["lone.9.index"]
    with pytest.raises(ValueError, match="invalid literal"):
        protocol.unpack_reply(content)

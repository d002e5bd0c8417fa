"""Malicious replies: the server rejects, logs and counts them, and the other clients are not affected."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict

from client.app import app as real_app
from common.messages import protocol
from common.messages.protocol import ClientReport, Reply
from common.weights.folding import Fold

NODES = [{"partition-id": p} for p in range(6)]
SETTINGS = {"clients.per-node": 1, "run.rounds": 1}
HOSTILE = 2  # alone in its node; clients 2 and 3 are of depth 2


class Hostile:
    """The real ClientApp, except that `answer` replaces the reply of one node."""

    def __init__(self, answer) -> None:
        self.answer = answer

    def __call__(self, message: Message, context) -> Message:
        honest = real_app(message, context)
        if message.metadata.message_type != protocol.TRAIN or context.node_config["partition-id"] != HOSTILE:
            return honest
        content = self.answer(protocol.unpack_reply(honest.content), protocol.unpack_order(message.content)[0])
        return Message(content, reply_to=message)


def by_reply(change):
    def answer(reply: Reply, order) -> RecordDict:
        change(reply, order)
        return protocol.pack_reply(reply)

    return answer


def by_content(change):
    def answer(reply: Reply, order) -> RecordDict:
        content = protocol.pack_reply(reply)
        change(content)
        return content

    return answer


def result_of(**changes):
    def change(content: RecordDict) -> None:
        head = json.loads(content["order"]["json"])
        head["results"][0] |= changes
        content["order"]["json"] = json.dumps(head)

    return by_content(change)


def model_of(reply: Reply):
    return reply.lone[HOSTILE]


def filled(value: float):
    return by_reply(lambda reply, _: model_of(reply).floats[3:5].fill_(value))


def counted(value: int):
    """Add a counter: LeNet has none, so it is an unexpected key (`test_folding` tests the range)."""
    return by_reply(lambda reply, _: setattr(model_of(reply), "counters", torch.tensor([value])))


def array_of(data: bytes):
    def change(content: RecordDict) -> None:
        record = content[f"lone.{HOSTILE}"]
        size = record["floats"].shape
        made = Array(dtype="float32", shape=size, stype="numpy.ndarray", data=data)
        content[f"lone.{HOSTILE}"] = ArrayRecord({"floats": made, "counters": record["counters"]})

    return by_content(change)


def announced(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


class Bomb:
    def __reduce__(self):
        return pytest.exit, ("it was unpickled",)


def layout_of(text: str):
    return by_content(lambda content: content[f"lone.{HOSTILE}.index"].update({"json": text}))


def fold_of(
    clients: list[int], *, fill: int | None = None, weight: int = 0, bits: int = 0, keep: bool = False, depth: int = 2
):
    """Send a sum over these clients instead of the model or, with `keep`, beside it."""

    def change(reply: Reply, order) -> None:
        state, samples = model_of(reply), reply.results[0].num_examples
        fold = Fold(state.layout, order.bits + bits)
        fold.add_state(state, samples, clients[0])
        fold.clients, fold.weight = clients, weight or samples
        if fill is not None:
            fold.sums = torch.full_like(fold.sums, fill)
        reply.folds[depth] = fold
        if not keep:
            del reply.lone[HOSTILE]

    return by_reply(change)


def other_depth(reply: Reply, order) -> None:
    reply.folds[7] = Fold(model_of(reply).layout, order.bits)
    reply.folds[7].add_state(reply.lone.pop(HOSTILE), reply.results[0].num_examples, HOSTILE)


def entry_of(index: str, size: int = 0):
    def change(content: RecordDict) -> None:
        content["entries"] = ArrayRecord({"float32": Array(np.zeros(size, np.float32))})
        content["entries.index"] = type(content["order"])({"json": index})

    return by_content(change)


ATTACKS = {
    "nan": (filled(float("nan")), "not finite"),
    "inf": (filled(float("-inf")), "not finite"),
    "huge weights": (filled(1e30), "out of range"),
    "announced size": (array_of(announced(f"({10**13},)")), "announces shape"),
    "announced overflow": (array_of(announced(f"({2**40}, {2**40})")), "announces shape"),
    "pickle": (array_of(pickle.dumps(Bomb())), "version 1.0"),
    "pickled objects": (array_of(announced("(1,)").replace(b"'<f4'", b"'|O' ")), "not that of numbers"),
    "layout of a huge size": (layout_of(f'[[["units.0.0.weight", [{10**12}]]], []]'), "keys or shapes differ"),
    "unterminated layout": (layout_of("[" * 200_000), "not a layout"),
    "layout of infinity": (layout_of('[[["a", [Infinity]]], []]'), "not a layout"),
    "counter": (counted(-(2**63)), "missing or not a vector of 0"),
    "unterminated results": (by_content(lambda c: c["order"].update({"json": "[" * 200_000})), "nested too deeply"),
    "samples": (result_of(num_examples=10**400), "samples are not in 0.."),
    "negative samples": (result_of(num_examples=-4), "samples are not in 0.."),
    "more samples than announced": (result_of(num_examples=4095), "counts 4095 samples, where it announced"),
    "no samples": (result_of(num_examples=0), "has metrics of 0 samples"),
    "metric of text": (result_of(metrics={"loss": "x"}), "is no number"),
    "metric beyond floats": (result_of(metrics={"loss": 10**400}), "OverflowError"),
    "no model": (by_reply(lambda reply, _: reply.lone.clear()), "sent no model"),
    "unknown depth": (by_reply(other_depth), "of no depth"),
    "sum of others": (fold_of([0, 1]), "sent no model"),
    "sum with a neighbour": (fold_of([HOSTILE, 3]), "not asked for"),
    "sum of itself twice": (fold_of([HOSTILE, HOSTILE]), "not asked for"),
    "sum at the integer limit": (fold_of([HOSTILE], fill=-(2**63)), "out of range"),
    "sum of another weight": (fold_of([HOSTILE], weight=3), "weight is not"),
    "sum of a weight beyond floats": (fold_of([HOSTILE], weight=10**400), "weight is not"),
    "sum in another scale": (fold_of([HOSTILE], bits=3), "does not fit"),
    "entry larger than the data": (entry_of(f'[[2, "x", "float32", [{2**32}, {2**32}]]]'), "more than was sent"),
    "unexpected arrays": (entry_of('[[2, "x", "float32", [1000]]]', 1000), "4000 bytes of arrays came"),
    "entry of a negative size": (entry_of('[[2, "x", "float32", [-2, -2]]]'), "more than was sent"),
}


@pytest.fixture(scope="module")
def without() -> dict[str, torch.Tensor]:
    """Hold the model of the other clients; the first test fills it."""
    return {}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_rejected_and_model_is_that_of_others(run_strategy, flower_log, without, attack):
    if not without:
        failing = Hostile(lambda reply, _: protocol.pack_reply(Reply([replace(reply.results[0], error="gone")])))
        reference = run_strategy(SETTINGS, NODES, failing)
        assert (list(reference.records[0].failures), reference.records[0].rejected) == ([HOSTILE], [])
        without |= reference.strategy.model
    answer, reason = ATTACKS[attack]
    run = run_strategy(SETTINGS, NODES, Hostile(answer))
    (record,) = run.records
    assert list(record.failures) == [HOSTILE]
    assert reason in record.failures[HOSTILE]
    assert len(record.failures[HOSTILE]) < 400
    assert record.rejected == [HOSTILE]
    assert any(f"client {HOSTILE} is left out: " in line and reason in line for line in flower_log)
    assert sum(record.clients.values()) == 5
    assert all(torch.equal(run.strategy.model[key], value) for key, value in without.items())


@pytest.mark.parametrize("attack", ["no samples", "nan", "sum at the integer limit"])
def test_tier_keeps_model_if_all_updates_are_rejected(prepare_run, attack):
    nodes = [{**node, "depth": 3 if node["partition-id"] == HOSTILE else 1} for node in NODES]
    answer = ATTACKS[attack][0] if attack != "sum at the integer limit" else fold_of([HOSTILE], fill=-(2**63), depth=3)
    run = prepare_run(SETTINGS, nodes, Hostile(answer))
    before = {key: value.clone() for key, value in run.strategy.model.items()}
    run.strategy.start(run.grid)
    assert run.records[0].rejected == [HOSTILE]
    assert run.records[0].clients == {1: 5}
    shallow = set(run.strategy.layouts[1].keys)
    for key, value in run.strategy.model.items():
        assert torch.equal(value, before[key]) == (key not in shallow), key


def test_duplicate_model_counts_once(run_strategy):
    honest = run_strategy(SETTINGS, NODES)
    run = run_strategy(SETTINGS, NODES, Hostile(fold_of([HOSTILE], keep=True)))
    assert run.records[0].failures == {}
    assert all(torch.equal(run.strategy.model[key], value) for key, value in honest.strategy.model.items())


def test_invalid_depth_excludes_only_its_client(run_strategy, flower_log):
    report = ClientReport(HOSTILE, 99, "because", 40)
    run = run_strategy(
        {**SETTINGS, "run.rounds": 2}, NODES, Hostile(by_reply(lambda reply, _: reply.reports.append(report)))
    )
    assert [sum(record.clients.values()) for record in run.records] == [6, 5]
    assert any("client 2 is left out: depth 99 is not offered, this run has depth 1" in line for line in flower_log)


def test_updates_rejected_by_node_count_as_rejected(run_strategy, monkeypatch):
    from strategies.node.local_training import LocalTraining

    train = LocalTraining.train

    def diverge(self, job):
        outcome = train(self, job)
        if job.client == HOSTILE:
            outcome.state.floats[0] = float("nan")
        return outcome

    monkeypatch.setattr(LocalTraining, "train", diverge)
    (record,) = run_strategy({"run.rounds": 1}).records
    assert record.rejected == [HOSTILE]
    assert "weights are not finite" in record.failures[HOSTILE]

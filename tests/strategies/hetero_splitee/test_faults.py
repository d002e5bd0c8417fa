"""Faults during a whole streaming run: broken connections, killed clients, intruders. The run still ends."""

import itertools
import socket
import threading
from contextlib import suppress

import grpc
import pytest
import torch

from common.rpc.channels import Limits, connect, new_token
from common.rpc.methods import OFFLOAD, TRAIN
from strategies.engine.rounds import QuorumError
from strategies.hetero_splitee.client import ADDRESS
from strategies.hetero_splitee.stream import FeatureStream, Origin, StreamError
from tests.strategies.hetero_splitee.processes import ProcessGrid
from tests.strategies.hetero_splitee.runs import GRID, NODES, SPLIT, everything, made_tokens, same, told
from tests.strategies.hetero_splitee.sockets import BreakingProxy, accepted, until

KILLED = 2
AT_HOME = [{"client-ids": "0,1,3"}, {"client-ids": "4,5"}, {"client-id": KILLED}]
MODES = {
    "sequential": {"splitee.mode": "sequential"},
    "averaging": {"splitee.mode": "averaging"},
    "return": {"splitee.mode": "averaging", "splitee.gradient": "return"},
}
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def port_of(strategy):
    return int(strategy.stream.address.rpartition(":")[2])


def behind(strategy, make_proxy):
    """Redirect a strategy's clients to a proxy, made as soon as the service has a port; return the proxies."""
    proxies, order = [], strategy.round_values

    def redirected(round_):
        facts = dict(order(round_))
        if facts and not proxies:
            proxies.append(make_proxy(port_of(strategy)))
        return facts | ({ADDRESS: proxies[0].address} if facts else {})

    strategy.round_values = redirected
    return proxies


@pytest.mark.parametrize(
    ("mode", "direction"),
    [("sequential", "up"), ("sequential", "down"), ("averaging", "up"), ("return", "down")],
)
def test_broken_streams_do_not_change_the_run(undisturbed, prepare_run, mode, direction):
    whole = undisturbed(MODES[mode])
    run = prepare_run({**SPLIT, **MODES[mode], "run.name": "broken"}, NODES[:3], grid=GRID)
    # all nodes of this process share a connection; it breaks in both rounds and during the clients' evaluation
    limits = [9_000, 20_000, 5_000, 40_000, 30_000, 60_000] if direction == "up" else [300, 700, 500, 900, 1_500]
    proxies = behind(run.strategy, lambda port: BreakingProxy(port, limits, direction))
    run.strategy.start(run.grid)
    with proxies[0] as proxy:
        assert proxy.connections > 3
    assert [record.failures for record in run.records] == [{}, {}]
    assert same(everything(run.strategy), everything(whole.strategy))
    assert told(run) == told(whole)


def after_every_step(strategy, call):
    """Make the training thread call back after each step; the round continues when the call returns."""
    step = strategy.server.step_many

    def stepping(batches):
        results = step(batches)
        call()
        return results

    strategy.server.step_many = stepping


@modes
def test_batches_of_a_killed_client_count_once(prepare_run, flower_log, mode):
    run = prepare_run({**SPLIT, **mode, "run.rounds": 3}, AT_HOME, grid=ProcessGrid)
    came, results = {}, {}
    on_round = run.on_round

    def remember(strategy, record):
        on_round(strategy, record)
        results[record.round] = strategy.trainer.result

    run.on_round = remember

    def kill():
        inbox = run.strategy.trainer.inbox
        if inbox.opened.round == 2 and not came and accepted(inbox)[KILLED] >= 2:
            run.grid.kill()
            until(lambda: inbox.queues[KILLED].late, 60)  # the strategy has learnt of the failure
            came.update(accepted(inbox))

    after_every_step(run.strategy, kill)
    try:
        run.strategy.start(run.grid)
    finally:
        run.grid.kill()
    assert [list(record.failures) for record in run.records] == [[], [KILLED], []]
    whole, broken, after = (record.terms for record in run.records)
    trained, missing = results[2].batches, results[2].missing
    assert trained[KILLED] == came[KILLED]
    assert missing == {**dict.fromkeys(range(6), 0), KILLED: missing[KILLED]}
    assert missing[KILLED] > 0 < trained[KILLED]
    assert broken["missing"] == missing[KILLED]
    assert broken["batches"] == whole["batches"] - missing[KILLED] == sum(trained.values())
    assert (
        f"round 2: client {KILLED}: {missing[KILLED]} batches are missing, {trained[KILLED]} came and counted once"
        in flower_log
    )
    assert (after["batches"], after["missing"]) == (whole["batches"], 0)
    assert run.strategy.committed == dict.fromkeys(range(6), 3)
    assert all(torch.isfinite(value).all() for value in run.strategy.model.values() if value.is_floating_point())


def refusals(strategy):
    """Attack an open round like an intruder; return the result of each attempt."""
    (address, _, token), facts = strategy.stream, strategy.round_values(strategy.trainer.inbox.opened.round)
    origin = Origin(strategy.config.run.name, 0, 1, strategy.trainer.inbox.opened.round, facts["version"])
    large = Limits(message_bytes=1 << 30)
    ended = {}

    def attempt(name, channel, call):
        try:
            call(channel)
            ended[name] = None
        except (grpc.RpcError, StreamError) as error:
            ended[name] = error.code() if isinstance(error, grpc.RpcError) else str(error)
        finally:
            channel.close()

    def stream(*messages):
        return lambda channel: list(channel.stream_stream(TRAIN)(iter(messages), timeout=60))

    def send(channel):
        with FeatureStream(channel, origin, deadline=60) as sender:
            sender.send(torch.zeros(8, 2, 8, 8), torch.zeros(8, dtype=torch.long))

    attempt("wrong token", connect(address, new_token(), limits=large), send)
    attempt("wrong token offloads", connect(address, new_token()), lambda c: c.unary_unary(OFFLOAD)(b"", timeout=60))
    attempt("garbage", connect(address, token), stream(b"\xff\xfe garbage" * 50))
    attempt("nothing", connect(address, token), stream())
    attempt("oversized", connect(address, token, limits=large), stream(b"\0" * (strategy.message_bytes + 1)))
    attempt("oversized offload", connect(address, token, limits=large),
            lambda c: c.unary_unary(OFFLOAD)(b"\0" * (strategy.message_bytes + 1), timeout=60))  # fmt: skip
    with suppress(OSError), socket.create_connection(("127.0.0.1", port_of(strategy)), timeout=60) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(10_000))
        while plain.recv(4096):
            pass
    return ended


@modes
def test_intruders_are_refused_and_do_not_change_the_run(undisturbed, prepare_run, flower_log, monkeypatch, mode):
    whole = undisturbed(mode)
    run = prepare_run({**SPLIT, **mode, "run.name": "visited"}, NODES[:2], grid=GRID)
    ended = []

    def intrude():
        if run.strategy.trainer.result.batches[0] == 2:  # in the middle of each round
            ended.append(refusals(run.strategy))

    after_every_step(run.strategy, intrude)
    tokens = made_tokens(monkeypatch)
    run.strategy.start(run.grid)
    assert len(ended) >= 2
    code = grpc.StatusCode
    for one in ended:
        assert "UNAUTHENTICATED: the call does not carry the run's token" in one.pop("wrong token")
        assert one == {
            "wrong token offloads": code.UNAUTHENTICATED, "garbage": code.INVALID_ARGUMENT,
            "nothing": code.INVALID_ARGUMENT, "oversized": code.RESOURCE_EXHAUSTED,
            "oversized offload": code.RESOURCE_EXHAUSTED,
        }  # fmt: skip
    assert [record.failures for record in run.records] == [{}, {}]
    assert same(everything(run.strategy), everything(whole.strategy))
    assert told(run) == told(whole)
    (token,) = tokens
    assert not any(token in line for line in flower_log)


def test_run_leaves_no_thread(split):
    before = set(threading.enumerate())
    split({"run.rounds": 1})
    names = {"split-trainer", "rpc-reader"}
    until(lambda: not [t for t in set(threading.enumerate()) - before if t.name in names or t.name.startswith("rpc_")])


def test_failed_server_training_ends_the_run(prepare_run):
    run = prepare_run(SPLIT, NODES[:2], grid=GRID)
    steps = itertools.count()

    def fail():
        if next(steps) == 3:
            raise FloatingPointError("boom")

    after_every_step(run.strategy, fail)
    with pytest.raises((FloatingPointError, QuorumError)):
        run.strategy.start(run.grid)
    assert run.records == []
    assert run.strategy.stream is None

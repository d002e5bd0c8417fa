import threading
import time
from contextlib import suppress

import pytest
import torch

from common.rpc.certificates import self_signed
from common.rpc.tensors import CODINGS, decode, encode
from strategies.hetero_splitee import stream as stream_module
from strategies.hetero_splitee.inbox import Closed, Missing
from strategies.hetero_splitee.stream import FeatureStream, StreamError, offload
from tests.strategies.hetero_splitee.sockets import (
    SHAPES,
    Background,
    Bench,
    BreakingProxy,
    accepted,
    batch,
    late,
    origin,
    same,
    take_all,
    until,
)


def gradient_of(stream, features, labels):
    return stream.wait_gradient(stream.send(features, labels), features.shape)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("cut", [1, 2])
def test_sent_batches_are_taken_unchanged(bench, coding, cut):
    inbox = bench.open({3: cut})
    taking = Background(lambda: take_all(inbox, 3))
    with bench.stream(origin(3, cut), coding=coding) as stream:
        assert [stream.send(*batch(3, index, cut)) for index in range(5)] == list(range(5))
        assert stream.finish() == 5
    taken = taking.result()
    assert accepted(inbox) == {3: 5}
    for index, received in enumerate(taken):
        features, labels = batch(3, index, cut)
        described, data = encode(features, coding)
        expected = decode(described, bytes(data), tuple(features.shape[1:]), 8)
        assert torch.equal(received.features, expected)
        assert torch.equal(received.labels, labels)
        assert (received.client, received.cut, received.index) == (3, cut, index)


def test_stream_works_over_tls():
    bench = Bench()
    bench.start(certificate=self_signed(["127.0.0.1"]))
    try:
        inbox = bench.open({0: 1})
        with bench.stream() as stream:
            taking = Background(lambda: take_all(inbox))
            stream.send(*batch(0, 0))
            stream.finish()
            assert same(taking.result()[0], 0, 0)
    finally:
        bench.stop()


def test_wrong_token_is_final_and_wrong_certificate_unreachable(bench, monkeypatch):
    monkeypatch.setattr(stream_module, "PAUSE", (60.0, 60.0))
    bench.open({0: 1})
    start = time.monotonic()
    stream = FeatureStream(bench.channel(token="wrong"), origin())
    with pytest.raises(StreamError, match="client 0 in round 1: UNAUTHENTICATED"), stream:
        stream.send(*batch(0, 0))
    assert time.monotonic() - start < 30  # no second attempt
    monkeypatch.setattr(stream_module, "PAUSE", (0.05, 0.05))
    monkeypatch.setattr(stream_module, "ATTEMPTS", 3)
    bench.certificate = self_signed(["127.0.0.1"])
    with pytest.raises(StreamError, match="could not be reached in 3 attempts"), bench.stream() as stream:
        stream.send(*batch(0, 0))


def test_send_waits_at_the_window_of_the_client(bench):
    inbox = bench.open({0: 1}, window=3)
    sent = []

    def send() -> None:
        with bench.stream(window=2) as stream:
            for index in range(4):
                sent.append(stream.send(*batch(0, index)))
            stream.finish()

    sending = Background(send)
    for taken in range(3):
        until(lambda taken=taken: len(sent) == min(4, 2 + taken))
        time.sleep(0.1)
        assert len(sent) == min(4, 2 + taken)
        assert same(inbox.take(0, taken, 60), 0, taken)
    inbox.take(0, 3, 60)
    sending.result()


def test_server_may_reduce_the_window(bench):
    inbox = bench.open({0: 1}, window=1)
    sent = []
    stream = bench.stream(window=5)
    sending = Background(lambda: [sent.append(stream.send(*batch(0, index))) for index in range(2)])
    until(lambda: accepted(inbox) == {0: 1})
    time.sleep(0.1)
    assert sent == [0]
    inbox.take(0, 0, 60)
    sending.result()
    stream.close()


def forwarded(kilobytes, direction):
    return pytest.param([int(1000 * k) for k in kilobytes], direction, id=f"{direction}-{kilobytes}")


@pytest.mark.parametrize(
    ("limits", "direction"),
    [
        forwarded([0.05, 0.3, 5, 12, 40, 70, 33, 9], "up"),  # while connecting, in a header, within and between batches
        forwarded([8.9, 17, 25.4, 33.8], "up"),
        forwarded([0.02, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8], "down"),  # batches arrive, acknowledgements are lost
    ],
)
@pytest.mark.parametrize("window", [1, 3])
def test_broken_connections_lose_and_repeat_no_batch(bench, monkeypatch, limits, direction, window):
    monkeypatch.setattr(stream_module, "PAUSE", (0.02, 0.1))
    inbox = bench.open({0: 1}, window=window)
    with BreakingProxy(bench.server.port, limits, direction) as proxy:
        taking = Background(lambda: take_all(inbox))
        with bench.stream(address=proxy.address, window=window) as stream:
            for index in range(40):
                stream.send(*batch(0, index))
            assert stream.finish() == 40
        taken = taking.result()
        assert len(taken) == 40
        assert all(same(got, 0, index) for index, got in enumerate(taken))
        assert (accepted(inbox), late(inbox)) == ({0: 40}, [])
        assert proxy.connections > len(limits)  # every break happened


def test_lost_end_message_is_sent_again(bench):
    inbox = bench.open({0: 1})
    with BreakingProxy(bench.server.port) as proxy, bench.stream(address=proxy.address) as stream:
        stream.send(*batch(0, 0))
        taking = Background(lambda: take_all(inbox))
        until(lambda: accepted(inbox) == {0: 1})
        proxy.drop = True
        assert stream.finish() == 1
        assert len(taking.result()) == 1
        assert (proxy.drop, proxy.connections) == (False, 2)


def test_gradients_return_batch_by_batch(bench):
    inbox = bench.open({0: 1}, gradients=True)
    taking = Background(lambda: take_all(inbox, gradient=lambda got: got.features * 2))
    with bench.stream() as stream:
        for index in range(4):
            features, labels = batch(0, index)
            assert torch.equal(gradient_of(stream, features, labels), features * 2)
        stream.finish()
    assert len(taking.result()) == 4


@pytest.mark.parametrize("limits", [[9.4, 17, 19, 30], [0.3, 5, 8.5, 8.7, 20]])
def test_lost_gradient_is_sent_again(bench, monkeypatch, limits):
    monkeypatch.setattr(stream_module, "PAUSE", (0.02, 0.1))
    inbox = bench.open({0: 1}, gradients=True)
    with BreakingProxy(bench.server.port, [int(1000 * k) for k in limits], "down") as proxy:
        taking = Background(lambda: take_all(inbox, gradient=lambda got: got.features + got.index))
        with bench.stream(address=proxy.address) as stream:
            for index in range(12):
                features, labels = batch(0, index)
                assert torch.equal(gradient_of(stream, features, labels), features + index)
            stream.finish()
        assert len(taking.result()) == 12
        assert proxy.connections > len(limits)


def test_gradient_that_cannot_be_sent_ends_the_stream(bench):
    inbox = bench.open({0: 1}, gradients=True)
    taking = Background(lambda: take_all(inbox, gradient=lambda got: got.features * torch.inf))
    with pytest.raises(StreamError, match=r"DATA_LOSS.*cannot be sent"), bench.stream() as stream:
        gradient_of(stream, *batch(0, 0))
    inbox.close()
    with suppress(Closed):
        taking.result()


def test_wait_gradient_fails_in_a_round_without_gradients(bench):
    inbox = bench.open({0: 1})
    taking = Background(lambda: inbox.take(0, 0, 60))
    with pytest.raises(StreamError, match="returns no gradients"), bench.stream() as stream:
        gradient_of(stream, *batch(0, 0))
    taking.result()


def test_skipped_client_gets_the_reason(bench):
    inbox = bench.open({0: 1, 1: 1})
    with bench.stream() as stream:
        stream.send(*batch(0, 0))
        assert same(inbox.take(0, 0, 60), 0, 0)
        assert inbox.take(0, 1, 0.05) == Missing.LATE
        assert inbox.take(1, 0, 0.05) == Missing.LATE
        with pytest.raises(StreamError, match="continues without it"):
            for index in range(1, 4):
                stream.send(*batch(0, index))
            stream.finish()
    with (
        pytest.raises(StreamError, match=r"client 1 in round 1.*continues without it"),
        bench.stream(origin(1)) as other,
    ):
        other.send(*batch(1, 0))
    assert (late(inbox), accepted(inbox)) == ([0, 1], {0: 1, 1: 0})


def test_deadline_ends_the_wait_for_the_trainer(bench):
    bench.open({0: 1})
    start = time.monotonic()
    with pytest.raises(StreamError, match=r"client 0 in round 1.*(?i:deadline)"), bench.stream(deadline=0.3) as stream:
        for index in range(3):
            stream.send(*batch(0, index))
    assert 0.25 < time.monotonic() - start < 30


def test_unreachable_server_ends_the_stream(bench, monkeypatch):
    monkeypatch.setattr(stream_module, "PAUSE", (0.02, 0.05))
    bench.server.stop()
    failed = f"could not be reached in {stream_module.ATTEMPTS} attempts"
    with pytest.raises(StreamError, match=failed), bench.stream() as stream:
        stream.send(*batch(0, 0))
    with pytest.raises(StreamError, match="deadline"), bench.stream(deadline=0.05) as stream:
        stream.send(*batch(0, 0))
    with pytest.raises(StreamError, match="could not be reached"):
        offload(bench.channel(), origin(), batch(0, 0)[0], 10)


def test_send_rejects_features_that_are_not_finite(bench):
    inbox = bench.open({0: 1})
    features, labels = batch(0, 0)
    features[1, 2] = torch.nan
    with bench.stream() as stream, pytest.raises(ValueError, match="not finite"):
        stream.send(features, labels)
    assert accepted(inbox) == {0: 0}


def test_finish_without_batches_returns_at_once(bench):
    inbox = bench.open({0: 1})
    with bench.stream() as stream:
        assert stream.finish() == 0
        with pytest.raises(ValueError, match="has ended"):
            stream.send(*batch(0, 0))
    assert inbox.take(0, 0, 60) == Missing.ENDED


def test_restarted_client_repeats_no_batch(bench):
    """A process is killed during its round; the next one sends the same batches again."""
    inbox = bench.open({0: 1})
    killed = bench.stream()
    killed.send(*batch(0, 0))
    killed.send(*batch(0, 1))
    until(lambda: accepted(inbox) == {0: 2})
    killed.close()
    assert same(inbox.take(0, 0, 60), 0, 0)
    with bench.stream() as stream:
        taking = Background(lambda: [inbox.take(0, index, 60) for index in range(1, 5)])
        for index in range(4):
            stream.send(*batch(0, index))
        assert stream.finish() == 4
    taken = taking.result()
    assert all(same(taken[index - 1], 0, index) for index in range(1, 4))
    assert taken[3] == Missing.ENDED


@pytest.mark.parametrize("gradients", [False, True])
def test_restarted_client_keeps_early_answers(bench, gradients):
    """The server acknowledges the killed process's batches at once; the new process may be slower."""
    inbox = bench.open({0: 1}, gradients=gradients)
    killed = bench.stream()
    for index in range(2):
        killed.send(*batch(0, index))
    answers = [torch.full((8, *SHAPES[1]), float(index)) for index in range(3)]
    for index in range(2):
        assert same(inbox.take(0, index, 60), 0, index)
        if gradients:
            inbox.reply(0, index, answers[index])
    killed.close()
    with bench.stream() as stream:
        taking = Background(lambda: inbox.take(0, 2, 60))
        for index in range(2):
            stream.send(*batch(0, index))
            if gradients:
                assert torch.equal(stream.wait_gradient(index, answers[index].shape), answers[index])
            time.sleep(0.2)
        stream.send(*batch(0, 2))
        assert same(taking.result(), 0, 2)
        if gradients:
            inbox.reply(0, 2, answers[2])
            assert torch.equal(stream.wait_gradient(2, answers[2].shape), answers[2])
        assert stream.finish() == 3


def test_second_stream_of_a_client_replaces_the_first(bench):
    bench.open({0: 1}, window=1)
    with bench.stream() as first, bench.stream() as second:
        first.send(*batch(0, 0))
        second.send(*batch(0, 0))
        with pytest.raises(StreamError, match="another stream of this client replaced this one"):
            first.send(*batch(0, 1))


@pytest.mark.parametrize("slow", [0, 1])
def test_order_of_two_clients_does_not_depend_on_their_speed(bench, slow):
    inbox = bench.open({0: 1, 1: 2})

    def send(client: int) -> None:
        with bench.stream(origin(client, client + 1)) as stream:
            for index in range(5):
                time.sleep(0.03 if client == slow else 0)
                stream.send(*batch(client, index, client + 1))
            stream.finish()

    sending = [Background(lambda client=client: send(client)) for client in (1, 0)]
    for index in range(5):
        for client in (0, 1):
            assert same(inbox.take(client, index, 60), client, index, client + 1)
    assert [inbox.take(client, 5, 60) for client in (0, 1)] == [Missing.ENDED] * 2
    for thread in sending:
        thread.result()


def test_one_thread_advances_several_streams_on_one_channel(bench):
    inbox = bench.open(dict.fromkeys(range(3), 1))
    taking = Background(
        lambda: [same(inbox.take(client, index, 60), client, index) for index in range(4) for client in range(3)]
    )
    channel = bench.channel()
    streams = [FeatureStream(channel, origin(client), deadline=60) for client in range(3)]
    for index in range(4):
        for client, stream in enumerate(streams):
            stream.send(*batch(client, index))
    ending = Background(lambda: [inbox.take(client, 4, 60) for client in range(3)] if all(taking.result()) else [])
    assert [stream.finish() for stream in streams] == [4, 4, 4]
    assert ending.result() == [Missing.ENDED] * 3
    for stream in streams:
        stream.close()


def test_lost_batch_is_resent_while_the_node_waits_elsewhere(bench, monkeypatch):
    """The server takes client 1's batch before it answers client 0, and the node waits for that answer."""
    monkeypatch.setattr(stream_module, "PAUSE", (0.02, 0.1))
    inbox = bench.open({0: 1, 1: 1}, gradients=True)

    def take():
        taken = [inbox.take(1, 0, 60), inbox.take(0, 0, 60)]
        inbox.reply(1, 0, taken[0].features)
        taken.append(inbox.take(1, 1, 60))
        inbox.reply(0, 0, taken[1].features)
        return taken

    with BreakingProxy(bench.server.port) as proxy:
        channel = bench.channel(proxy.address)
        with FeatureStream(channel, origin(0)) as zero, FeatureStream(channel, origin(1)) as one:
            first = zero.send(*batch(0, 0))
            one.send(*batch(1, 0))
            until(lambda: accepted(inbox) == {0: 1, 1: 1})
            proxy.drop = True  # the next bytes are lost with the connection
            one.send(*batch(1, 1))
            taking = Background(take)
            assert torch.equal(zero.wait_gradient(first, batch(0, 0)[0].shape), batch(0, 0)[0])
            taken = taking.result()
    assert [same(got, *place) for got, place in zip(taken, [(1, 0), (0, 0), (1, 1)], strict=True)] == [True] * 3
    assert proxy.connections > 1


def test_closed_stream_leaves_no_thread(bench):
    inbox = bench.open({0: 1})
    before = threading.active_count()
    with bench.stream() as stream:
        stream.send(*batch(0, 0))
        until(lambda: accepted(inbox) == {0: 1})
    until(lambda: threading.active_count() <= before + 2)  # gRPC's own of server and channel

"""The server's replies to messages that the project's own client never sends."""

import random
import socket
import threading
import time
from collections.abc import Iterable

import grpc
import pytest
import torch

from common.rpc.channels import Limits
from common.rpc.methods import OFFLOAD, TRAIN
from common.rpc.split_pb2 import (
    Batch,
    End,
    Features,
    Header,
    Hello,
    OffloadReply,
    OffloadRequest,
    TrainMessage,
    TrainReply,
)
from common.rpc.tensors import decode, encode
from strategies.hetero_splitee.inbox import Missing
from strategies.hetero_splitee.stream import StreamError, offload
from tests.strategies.hetero_splitee.sockets import (
    SHAPES,
    Background,
    Bench,
    accepted,
    batch,
    origin,
    same,
    take_all,
    until,
)

INVALID, UNFIT = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
FEATURES, LABELS = batch(0, 0)


def header(index: int = 0, **changes) -> Header:
    return Header(**{**vars(origin()), "index": index, **changes})


def hello(**changes) -> TrainMessage:
    return TrainMessage(header=header(**changes), hello=Hello())


def batch_message(index: int = 0, labels=LABELS, features=FEATURES, data=None, **changes) -> TrainMessage:
    described, encoded = encode(features, "fp32")
    body = Batch(features=described, labels=list(labels))
    return TrainMessage(header=header(index, **changes), batch=body, data=bytes(encoded) if data is None else data)


def plain_call(bench: Bench, messages: Iterable[TrainMessage], hold: bool = True):
    """Call like a stub generated in any language: protobuf serializes everything."""
    method = bench.channel().stream_stream(
        TRAIN, request_serializer=TrainMessage.SerializeToString, response_deserializer=TrainReply.FromString
    )

    def feed() -> Iterable[TrainMessage]:
        yield from messages
        called.wait(60)
        while hold and call.is_active():  # a stream that ends here would be another mistake
            time.sleep(0.01)

    called = threading.Event()
    call = method(feed(), timeout=60)
    called.set()
    return call


def refusal(bench: Bench, *messages: TrainMessage, hold: bool = True) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as raised:
        list(plain_call(bench, messages, hold))
    return raised.value.code(), raised.value.details()


def still_serves(bench: Bench, client: int = 1) -> None:
    """Assert that another client of the round can send all its batches."""
    inbox = bench.service._inbox
    with bench.stream(origin(client)) as stream:
        taking = Background(lambda: take_all(inbox, client))
        for index in range(3):
            stream.send(*batch(client, index))
        assert stream.finish() == 3
        assert all(same(got, client, index) for index, got in enumerate(taking.result()))


def test_service_works_with_generated_protobuf_stubs(bench):
    inbox = bench.open({0: 1})
    taking = Background(lambda: take_all(inbox))
    messages = [hello(), batch_message(), TrainMessage(header=header(1), end=End())]
    replies = list(plain_call(bench, messages, hold=False))
    assert [reply.WhichOneof("body") for reply in replies] == ["welcome", "ack"]
    assert [reply.header for reply in replies] == [header(0), header(0)]
    assert replies[0].welcome.credit == replies[1].ack.credit == 2
    (taken,) = taking.result()
    assert same(taken, 0, 0)


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (batch_message(labels=[0] * 7), INVALID, "7 labels for 8 samples"),
        (batch_message(labels=[]), INVALID, "0 labels"),
        (batch_message(labels=[0] * 7 + [10]), INVALID, "label 10 is too high for 10 classes"),
        (batch_message(labels=[4294967295] * 8), INVALID, "label 4294967295"),
        (batch_message(features=torch.zeros(8, 4, 8, 7)), INVALID, "shape"),
        (batch_message(features=torch.zeros(8, *SHAPES[2])), INVALID, "shape"),
        (batch_message(features=torch.zeros(9, 4, 8, 8)), INVALID, "9 samples came, 1 to 8"),
        (batch_message(labels=[1], features=FEATURES[:1]), INVALID, "samples in the batch: 1, batch norm takes 2"),
        (batch_message(features=FEATURES + 5000), INVALID, "beyond 4096"),
        (batch_message(data=b"1234"), INVALID, "4 bytes came, 8192"),
        (batch_message(data=b""), INVALID, "0 bytes came"),
        (batch_message(data=b"\xff" * 8192), INVALID, "not finite"),
        (TrainMessage(header=header(), batch=Batch(labels=[1])), INVALID, "coding"),
        (TrainMessage(header=header()), INVALID, "after the hello"),
        (hello(), INVALID, "after the hello"),
        (batch_message(1), grpc.StatusCode.OUT_OF_RANGE, "batch 1 arrived instead of batch 0"),
        (TrainMessage(header=header(5), end=End()), grpc.StatusCode.OUT_OF_RANGE, "0 of 5 batches"),
        (batch_message(client=1), INVALID, "for another client"),
        (batch_message(round=2), UNFIT, "round 2"),
        (batch_message(version=8), UNFIT, "version 8"),
        (batch_message(cut=2), UNFIT, "client 0 with cut 2"),
    ],
)
def test_wrong_message_ends_only_its_own_stream(bench, message, code, reason):
    inbox = bench.open({0: 1, 1: 1})
    received, details = refusal(bench, hello(), message)
    assert received == code
    assert reason in details
    assert accepted(inbox) == {0: 0, 1: 0}
    still_serves(bench)
    # the client itself may try again
    assert next(plain_call(bench, [hello()])).WhichOneof("body") == "welcome"


@pytest.mark.parametrize(
    ("first", "code", "reason"),
    [
        (hello(run="other"), UNFIT, "run 'other'"),
        (hello(round=2), UNFIT, "round 2"),
        (hello(version=6), UNFIT, "version 6"),
        (hello(client=2), UNFIT, "does not expect client 2"),
        (hello(cut=2), UNFIT, "with cut 2"),
        (hello(index=1), grpc.StatusCode.OUT_OF_RANGE, "has not acknowledged batch 0"),
        (batch_message(), INVALID, "first message must be a hello"),
        (TrainMessage(), INVALID, "hello"),
    ],
)
def test_wrong_first_message_is_refused(bench, first, code, reason):
    bench.open({0: 1, 1: 1})
    received, details = refusal(bench, first)
    assert received == code
    assert reason in details
    still_serves(bench)


def test_streams_need_the_open_round(bench):
    assert refusal(bench, hello()) == (UNFIT, "no round is open")
    first = bench.open({0: 1}, round_=1)
    call = plain_call(bench, [hello(), batch_message()])
    assert next(call).HasField("welcome")
    until(lambda: accepted(first) == {0: 1})
    bench.open({0: 1}, round_=2)
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    assert (raised.value.code(), raised.value.details()) == (UNFIT, "client 0 in round 1: the round is closed")
    assert "but run 'test', round 2, version 7 is open" in refusal(bench, hello())[1]


def test_stream_without_an_end_message_is_refused(bench):
    bench.open({0: 1, 1: 1})
    assert refusal(bench, hello(), batch_message(), hold=False) == (
        INVALID,
        "the stream stopped without an end message",
    )
    assert refusal(bench, hold=False)[0] == INVALID
    still_serves(bench)


def test_random_bytes_are_refused_and_the_service_continues(bench):
    bench.open({0: 1, 1: 1})
    noise = random.Random(3)
    method = bench.channel().stream_stream(TRAIN)
    codes = set()
    for size in (1, 10, 100, 1000, 10_000):
        for start in (b"", hello().SerializeToString()):
            with pytest.raises(grpc.RpcError) as raised:
                list(method(iter([start + noise.randbytes(size)]), timeout=60))
            codes.add(raised.value.code())
            with pytest.raises(grpc.RpcError) as raised:
                list(method(iter([hello().SerializeToString(), noise.randbytes(size)]), timeout=60))
            codes.add(raised.value.code())
    assert codes <= {INVALID, UNFIT}
    for start in (b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", bench.server.port)) as connection:
            connection.sendall(start + noise.randbytes(5000))
    still_serves(bench)


def test_sender_that_ignores_its_credit_is_blocked(bench):
    inbox = bench.open({0: 1}, window=2)
    call = plain_call(bench, [hello(), *(batch_message(index) for index in range(5))])
    assert next(call).HasField("welcome")
    until(lambda: accepted(inbox) == {0: 2})
    time.sleep(0.1)
    assert accepted(inbox) == {0: 2}
    inbox.take(0, 0, 60)
    until(lambda: accepted(inbox) == {0: 3})


def test_oversized_message_is_refused():
    bench = Bench()
    bench.start(limits=Limits(message_bytes=4000))
    try:
        inbox = bench.open({0: 1, 1: 2})
        stream = bench.stream()
        with pytest.raises(StreamError, match="RESOURCE_EXHAUSTED"), stream:
            stream.send(*batch(0, 0))  # 8 KiB
            stream.finish()
        assert accepted(inbox) == {0: 0, 1: 0}
        with bench.stream(origin(1, 2)) as stream:
            taking = Background(lambda: take_all(inbox, 1))
            stream.send(*batch(1, 0, 2))  # 960 bytes
            assert stream.finish() == 1
            assert same(taking.result()[0], 1, 0, 2)
    finally:
        bench.stop()


def test_server_stops_despite_open_streams(bench):
    inbox = bench.open({0: 1, 1: 1}, window=1)
    calls = [plain_call(bench, [hello(client=c), *(batch_message(i, client=c) for i in range(3))]) for c in (0, 1)]
    assert all(next(call).HasField("welcome") for call in calls)
    until(lambda: accepted(inbox) == {0: 1, 1: 1})
    start = time.monotonic()
    bench.server.stop(grace=0.1)  # the fixture asserts that it leaves no thread
    assert time.monotonic() - start < 20  # the calls have a timeout of a minute


def offload_call(bench: Bench, **changes) -> OffloadReply:
    method = bench.channel().unary_unary(
        OFFLOAD, request_serializer=OffloadRequest.SerializeToString, response_deserializer=OffloadReply.FromString
    )
    described, data = encode(FEATURES, "fp32")
    request = {"header": header(), "features": described, "data": bytes(data), **changes}
    return method(OffloadRequest(**request), timeout=60)


@pytest.fixture
def answering():
    seen = []

    def answer(client: int, cut: int, features: torch.Tensor) -> torch.Tensor:
        seen.append((client, cut, len(features)))
        return features.flatten(1)[:, :10] * cut

    started = Bench()
    started.start(answer)
    started.seen = seen
    yield started
    started.stop()


def test_offload_answers_without_an_open_round(answering):
    channel = answering.channel()
    for client, cut in ((0, 1), (5, 2)):
        features, _ = batch(client, 0, cut)
        logits = offload(channel, origin(client, cut), features[:3], classes=10)
        assert torch.equal(logits, features[:3].flatten(1)[:, :10] * cut)
    assert answering.seen == [(0, 1, 3), (5, 2, 3)]
    reply = offload_call(answering)
    assert reply.header == header()
    assert torch.equal(decode(reply.logits, reply.data, (10,), 8), FEATURES.flatten(1)[:, :10])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"header": header(run="other")}, "run 'other'"),
        ({"header": header(cut=3)}, "cut 3"),
        ({"header": header(cut=2)}, "shape"),
        ({"data": b"12"}, "2 bytes"),
        ({"data": b"\xff" * 8192}, "not finite"),
        ({"features": Features()}, "coding"),
    ],
)
def test_offload_refuses_wrong_features(answering, changes, reason):
    with pytest.raises(grpc.RpcError) as raised:
        offload_call(answering, **changes)
    assert raised.value.code() == INVALID
    assert reason in raised.value.details()
    assert not answering.seen
    offload_call(answering)


def test_offload_without_a_model_is_refused(bench):
    with pytest.raises(StreamError, match="does not answer features"):
        offload(bench.channel(), origin(), FEATURES, 10)


def test_answer_that_cannot_be_sent_is_final():
    bench = Bench()
    bench.start(lambda client, cut, features: torch.full((len(features), 10), torch.nan))
    try:
        began = time.monotonic()
        with pytest.raises(StreamError, match=r"DATA_LOSS.*cannot be sent as fp32"):
            offload(bench.channel(), origin(), FEATURES, 10)
        assert time.monotonic() - began < 5  # a broken connection would be tried again for longer
    finally:
        bench.stop()


def test_offload_calls_run_one_at_a_time():
    at_once, most = 0, 0

    def answer(client: int, cut: int, features: torch.Tensor) -> torch.Tensor:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        time.sleep(0.02)
        at_once -= 1
        return features.flatten(1)[:, :10]

    bench = Bench()
    bench.start(answer)
    try:
        channel = bench.channel()
        calls = [Background(lambda: offload(channel, origin(), FEATURES, 10)) for _ in range(12)]
        assert all(torch.equal(call.result(), FEATURES.flatten(1)[:, :10]) for call in calls)  # some were retried
        assert most == 1
    finally:
        bench.stop()


def test_late_client_gets_the_reason(bench):
    inbox = bench.open({0: 1, 1: 1})
    call = plain_call(bench, [hello()])
    assert next(call).HasField("welcome")
    assert inbox.take(0, 0, 0.05) == Missing.LATE
    with pytest.raises(grpc.RpcError) as raised:
        next(call)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert "continues without it" in raised.value.details()
    assert refusal(bench, hello())[0] == grpc.StatusCode.DEADLINE_EXCEEDED
    still_serves(bench)

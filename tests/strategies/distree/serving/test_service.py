"""A device that serves its student over a real socket."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event

import grpc
import pytest
import torch

from common.errors import UserError
from common.rpc import framing
from common.rpc.channels import Limits, connect, serve
from common.rpc.methods import INFER
from common.rpc.split_pb2 import FP32
from common.rpc.students_pb2 import InferReply, InferRequest
from common.rpc.tensors import CODINGS, decode
from strategies.distree.exits.policies import (
    CALIBRATED,
    PUBLISHED,
    Entropy,
    ExitPolicy,
    FeatureDifference,
    LastExit,
    OwnHead,
    Random,
)
from strategies.distree.serving.computed import TorchStudent
from strategies.distree.serving.service import StudentService, message_bytes, own_policy
from tests.strategies.distree.devices import EXITS, GATE, PIXELS, TOKEN, Tiny, held_at, service, serving, slow_at
from tests.support.deployment import wait_until

ANY = Random((1,) * EXITS, seed=1)
IDS = tuple(range(len(PIXELS)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


def request(exits: ExitPolicy | None = None, data: bytes = PIXELS.numpy().tobytes(), **changes) -> bytes:
    fields = {
        "run": "tiny", "student": 1, "shape": PIXELS.shape, "ids": IDS, "coding": FP32,
        "policy": exits.to_json() if exits else "", **changes,
    }  # fmt: skip
    return framing.join(InferRequest(**fields), data)


def replies(address: str, raw: bytes) -> Iterator[tuple[InferReply, torch.Tensor]]:
    with connect(address, TOKEN) as channel:
        for answer in channel.unary_stream(INFER)(raw, timeout=20):
            head, data = framing.split(answer)
            reply = InferReply.FromString(head)
            yield reply, decode(reply.features, data, (len(reply.rows), 4, 1), 1)[0, :, :, 0]


@pytest.mark.parametrize(
    "policy", [ANY, LastExit(EXITS), FeatureDifference(PUBLISHED), OwnHead((0.3,) * 6), Entropy((0.03,) * 6), GATE]
)
def test_reply_holds_the_exact_features(tiny: Tiny, policy: ExitPolicy) -> None:
    expected = tiny.here(1, policy, IDS)
    with serving(service(tiny.student(1))) as address:
        found = list(replies(address, request(policy)))
    assert [reply.exit for reply, _ in found] == expected.exits.unique().tolist()
    assert sorted(row for reply, _ in found for row in reply.rows) == list(IDS)
    for reply, features in found:
        rows = list(reply.rows)
        assert expected.exits[rows].tolist() == [reply.exit] * len(rows)
        assert torch.equal(features, expected.logits[rows])
    seconds = [reply.seconds for reply, _ in found]
    assert seconds[0] > 0
    assert seconds == sorted(seconds)


@pytest.mark.parametrize(("coding", "error"), [("fp16", 1e-3), ("bf16", 1e-2), ("uint8", 5e-3)])
def test_shorter_codings_are_close(tiny: Tiny, coding: str, error: float) -> None:
    expected = tiny.here(1, LastExit(EXITS)).logits
    assert expected.max() > 0
    with serving(service(tiny.student(1))) as address:
        ((reply, features),) = replies(address, request(LastExit(EXITS), coding=CODINGS[coding]))
    assert (features - expected).abs().max() <= error * expected.max()
    assert len(reply.features.scale) == (len(PIXELS) if coding == "uint8" else 0)


def test_early_samples_arrive_before_the_rest_is_computed(tiny: Tiny) -> None:
    held = Event()
    student = tiny.student(1)
    student.network.units["6"].register_forward_hook(lambda *_: held.wait(20) and None)
    with serving(service(student)) as address:
        found = replies(address, request(Random((1,) + (0,) * (EXITS - 2) + (1,), seed=1)))
        early, _ = next(found)
        assert early.exit == 0
        held.set()
        late, _ = next(found)
    assert late.exit == EXITS - 1
    assert sorted([*early.rows, *late.rows]) == list(IDS)


def test_computing_stops_when_all_samples_have_left(tiny: Tiny) -> None:
    student, ran = tiny.student(1), list[str]()
    for index, unit in student.network.units.items():
        unit.register_forward_hook(lambda *_, index=index: ran.append(index))
    with serving(service(student)) as address:
        ((reply, _),) = replies(address, request(Random((0, 0, 1, 0, 0, 0, 0))))
    assert (reply.exit, ran) == (2, ["0", "1", "2"])


def test_computing_stops_when_the_caller_disconnects(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    student, reached, gone, ended, ran = tiny.student(1), Event(), Event(), Event(), list[str]()
    contexts, infer = list[grpc.ServicerContext](), StudentService._infer

    def watched(self: StudentService, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        contexts.append(context)
        yield from infer(self, raw, context)
        ended.set()

    def wait(*_: object) -> None:
        reached.set()
        gone.wait(60)

    monkeypatch.setattr(StudentService, "_infer", watched)
    student.network.units["1"].register_forward_hook(wait)
    for index, unit in student.network.units.items():
        unit.register_forward_hook(lambda *_, index=index: ran.append(index))
    with serving(service(student)) as address, connect(address, TOKEN) as channel:
        call = channel.unary_stream(INFER)(request(LastExit(EXITS)), timeout=20)
        assert reached.wait(20)
        call.cancel()
        wait_until(lambda: not contexts[0].is_active(), 30, "the server has not noticed the disconnect")
        gone.set()
        assert ended.wait(30)
    assert ran == ["0", "1"]


def test_disconnected_callers_leave_the_queue(tiny: Tiny) -> None:
    student, reached = tiny.student(1), Event()
    student.network.units["0"].register_forward_pre_hook(lambda *_: reached.set())
    released = held_at(student, 0)
    with (
        serve(service(student), "127.0.0.1:0", TOKEN, limits=Limits(calls=2)) as server,
        connect(server.address, TOKEN) as channel,
        ThreadPoolExecutor(1) as first,
    ):

        def asked(seconds: float) -> grpc.StatusCode | None:
            try:
                list(channel.unary_stream(INFER)(request(), timeout=seconds))
            except grpc.RpcError as error:
                return error.code()
            return None

        computing = first.submit(asked, 60.0)
        assert reached.wait(20)  # otherwise the next caller could be the one that computes
        assert asked(0.5) == grpc.StatusCode.DEADLINE_EXCEEDED  # one of the two waits behind the other
        wait_until(lambda: asked(0.5) == grpc.StatusCode.DEADLINE_EXCEEDED, 20, "there is no room")
        released.set()
        assert computing.result() is None
        assert asked(60.0) is None


def test_warm_up_runs_all_units(tiny: Tiny) -> None:
    student, ran = tiny.student(1), list[str]()
    for index, unit in student.network.units.items():
        unit.register_forward_hook(lambda *_, index=index: ran.append(index))
    StudentService(TorchStudent(student), LastExit(EXITS), slowdown=1e6).warm_up()
    assert ran == list(student.network.units)


def test_slowdown_multiplies_the_reported_seconds(tiny: Tiny) -> None:
    with serving(service(slow_at(tiny.student(1), 0, 0.02), slowdown=4.0)) as address:
        started = time.perf_counter()
        ((reply, _),) = replies(address, request(Random((1,) + (0,) * (EXITS - 1))))
    assert 0.08 <= reply.seconds < time.perf_counter() - started


@pytest.mark.parametrize(
    ("raw", "code", "reason"),
    [
        (request(run="other"), "FAILED_PRECONDITION", "asks for student 1 of run 'other', here is student 1 of"),
        (request(run="other"), "FAILED_PRECONDITION", "run 'tiny': copy the students of one training"),
        (request(student=2), "FAILED_PRECONDITION", "asks for student 2 of run 'tiny'"),
        (request(shape=(6, 3, 8, 9)), "INVALID_ARGUMENT", "samples of shape"),
        (request(shape=(6, 192)), "INVALID_ARGUMENT", "samples of shape"),
        (request(shape=()), "INVALID_ARGUMENT", "samples of shape"),
        (request(shape=(0, 3, 8, 8), data=b"", ids=()), "INVALID_ARGUMENT", "0 samples came"),
        (request(shape=(9, 3, 8, 8)), "INVALID_ARGUMENT", "9 samples came, 1 to 8 are allowed"),
        (request(shape=(2**32 - 1, 3, 8, 8)), "INVALID_ARGUMENT", "samples came, 1 to 8 are allowed"),
        (request(data=bytes(100)), "INVALID_ARGUMENT", "100 bytes came, 1152 are expected"),
        (request(ids=(1, 2)), "INVALID_ARGUMENT", "2 ids came with 6 samples"),
        (request(coding=0), "INVALID_ARGUMENT", "unknown coding 0"),
        (request(ANY, ids=()), "INVALID_ARGUMENT", "needs the number of every sample"),
        (request(LastExit(3)), "INVALID_ARGUMENT", "for 3 exits, the student has 7"),
        (request(policy='{"policy": "last"}'), "INVALID_ARGUMENT", "damaged"),
        (request(policy=json.dumps({"policy": "x" * 20000})), "INVALID_ARGUMENT", "at most 16384 are allowed"),
        (b"\xff" * 50, "INVALID_ARGUMENT", "malformed message"),
        (b"", "FAILED_PRECONDITION", "student 0"),
    ],
)  # fmt: skip
def test_invalid_request_is_refused(tiny: Tiny, raw: bytes, code: str, reason: str) -> None:
    with serving(service(tiny.student(1), batch_size=8)) as address:
        with pytest.raises(grpc.RpcError) as refusal:
            list(replies(address, raw))
        assert (refusal.value.code().name, reason in refusal.value.details()) == (code, True), refusal.value.details()
        assert len(list(replies(address, request(LastExit(EXITS))))) == 1  # and it goes on serving


def test_wrong_token_is_refused(tiny: Tiny) -> None:
    with serving(service(tiny.student(1))) as address, connect(address, "another") as channel:
        with pytest.raises(grpc.RpcError) as refusal:
            next(channel.unary_stream(INFER)(request(), timeout=20))
        assert refusal.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_features_that_are_not_finite_are_refused(tiny: Tiny) -> None:
    student = tiny.student(1)
    student.network.head(3).register_forward_hook(lambda *values: values[-1] * float("nan"))
    with serving(service(student)) as address:
        with pytest.raises(grpc.RpcError) as refusal:
            list(replies(address, request(Random((0, 0, 1, 0, 0, 0, 0)))))
        assert refusal.value.code() == grpc.StatusCode.INTERNAL
        assert "exit 3: some features are not finite" in refusal.value.details()


def test_message_bytes_bounds_the_largest_batch(tiny: Tiny) -> None:
    most = message_bytes(TorchStudent(tiny.student(1)), 8)
    longest = request(LastExit(EXITS), data=bytes(8 * 192), shape=(8, 3, 8, 8), ids=[2**64 - 1] * 8, run="r" * 500)
    assert len(longest) < most
    assert most < 2 * (1 << 16)


def test_own_policy_of_a_device(tiny: Tiny) -> None:
    plain = tiny.student(1)
    assert own_policy(TorchStudent(plain)) == FeatureDifference(PUBLISHED)
    stored = replace(plain, policies={CALIBRATED: ANY, "last": LastExit(EXITS)})
    assert own_policy(TorchStudent(stored)) == ANY
    assert own_policy(TorchStudent(stored), "last") == LastExit(EXITS)
    with pytest.raises(UserError, match="no policy 'quick'; stored are: calibrated, last"):
        own_policy(TorchStudent(stored), "quick")
    with pytest.raises(UserError, match="stored are: none"):
        own_policy(TorchStudent(plain), "calibrated")
    with pytest.raises(UserError, match=r"no policy 'gate'; stored are: calibrated, last; fit one by .*exit-rule=gate"):
        own_policy(TorchStudent(stored), "gate")

"""The joint answer of several devices: equal to that of one process, with stand-ins for missing devices."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from common.errors import UserError
from common.networks import Inference
from common.rpc import framing
from common.rpc.certificates import self_signed
from common.rpc.channels import connect, serve
from common.rpc.students_pb2 import InferReply
from common.rpc.tensors import encode
from strategies.distree.exits.policies import FeatureDifference, LastExit, Random
from strategies.distree.serving import aggregator as aggregator_module
from strategies.distree.serving.aggregator import Aggregator, Answer
from strategies.distree.serving.computed import TorchStudent
from strategies.distree.serving.service import own_policy
from tests.strategies.distree.devices import (
    EXITS,
    PIXELS,
    TOKEN,
    Tiny,
    asking,
    held_at,
    replying,
    service,
    serving,
    wait_ready,
)
from tests.support.deployment import free_port, wait_until

IDS = tuple(range(len(PIXELS)))
LAST = LastExit(EXITS)
POLICIES = {1: Random((1,) * EXITS, seed=1), 2: Random((0, 1, 0, 1, 0, 1, 1), seed=2)}
HALF = Random((0, 1, 0, 0, 0, 0, 1), seed=3)  # some leave early, the others at the end


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def addresses(tiny: Tiny):
    with serving(service(tiny.student(1))) as first, serving(service(tiny.student(2))) as second:
        yield {1: first, 2: second}


@pytest.fixture
def nowhere() -> Iterator[str]:
    """Yield an address that no process listens on, or can listen on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def without(tiny: Tiny, number: int, answer: Answer, policy=LAST) -> bool:
    """Return whether an answer holds the mean of student `number` in all rows, and the other student's features."""
    other = 3 - number
    mean = Inference(tiny.whole.means[number].expand(len(PIXELS), -1), torch.full((len(PIXELS),), EXITS - 1))
    expected = tiny.combined({number: mean, other: tiny.here(other, policy, IDS)})
    return torch.equal(answer.logits, expected) and answer.exits[number].eq(-1).all() and other not in answer.missing


def reply(rows=(0,), exit_index=0, features=None, seconds=0.1) -> bytes:
    values = torch.ones(len(rows), 3) if features is None else features
    described, data = encode(values.nan_to_num()[None, :, :, None], "fp32")
    if not values.isfinite().all():
        data = values.numpy().tobytes()
    return framing.join(InferReply(exit=exit_index, rows=rows, features=described, seconds=seconds), data)


def test_devices_give_the_bits_of_a_single_process(tiny: Tiny, addresses) -> None:
    with asking(tiny, addresses) as aggregator:
        for size in (1, len(PIXELS)):
            answer = aggregator.infer(PIXELS[:size], POLICIES, IDS[:size])
            alone = {k: tiny.here(k, policy, IDS[:size], PIXELS[:size]) for k, policy in POLICIES.items()}
            assert not answer.missing
            assert torch.equal(answer.logits, tiny.combined(alone))
            assert all(torch.equal(answer.exits[k], inference.exits) for k, inference in alone.items())
    assert set(answer.compute) == set(answer.arrived) == {1, 2}
    assert all(0 < answer.compute[k] < answer.arrived[k] < answer.seconds for k in (1, 2))
    assert all(PIXELS.numel() < answer.sent[k] < PIXELS.numel() + 300 for k in (1, 2))
    assert all(4 * 3 * len(PIXELS) < answer.received[k] < 1000 for k in (1, 2))


def test_devices_are_ready_before_the_first_batch(tiny: Tiny, addresses, monkeypatch) -> None:
    monkeypatch.setattr(aggregator_module, "START", 60.0)
    with ExitStack() as stack:
        channels = {number: stack.enter_context(connect(address, TOKEN)) for number, address in addresses.items()}
        aggregator = stack.enter_context(Aggregator(tiny.whole, channels, deadline=20.0))
        assert all(remote._ready.is_set() for remote in aggregator._remotes.values())


@torch.no_grad()
def test_devices_give_the_logits_of_the_joint_network(tiny: Tiny, addresses) -> None:
    """At the last exits they equal the trained network, to 1e-6, since sums run in another order."""
    joint = tiny.whole.students(tiny.whole.normalizer(PIXELS))[-1]
    with asking(tiny, addresses) as aggregator:
        answer = aggregator.infer(PIXELS, {1: LAST, 2: LAST})
    torch.testing.assert_close(answer.logits, joint, rtol=1e-6, atol=1e-6)


def test_device_without_a_policy_uses_its_own(tiny: Tiny, addresses) -> None:
    with asking(tiny, addresses) as aggregator:
        answer = aggregator.infer(PIXELS, {2: LAST})
    own = own_policy(TorchStudent(tiny.student(1)))
    assert isinstance(own, FeatureDifference)
    assert answer.exits[1].tolist() == tiny.here(1, own).exits.tolist()
    assert answer.exits[2].tolist() == [EXITS - 1] * len(PIXELS)


@pytest.mark.parametrize(("coding", "error"), [("fp16", 2e-3), ("bf16", 2e-2), ("uint8", 1e-2)])
def test_shorter_codings_change_little(tiny: Tiny, addresses, coding: str, error: float) -> None:
    with asking(tiny, addresses) as exactly, asking(tiny, addresses, coding=coding) as shortly:
        exact, short = (aggregator.infer(PIXELS, POLICIES, IDS) for aggregator in (exactly, shortly))
    assert 0 < (short.logits - exact.logits).abs().max() < error * exact.logits.abs().max()


def test_rows_before_the_deadline_count(tiny: Tiny, addresses) -> None:
    student = tiny.student(2)
    released = held_at(student, 5)
    with (
        serving(service(student)) as slow,
        asking(tiny, addresses | {2: slow}, deadline=2.0) as aggregator,
    ):
        answer = aggregator.infer(PIXELS, {1: LAST, 2: HALF}, IDS)
        released.set()
    expected = tiny.here(2, HALF, IDS).exits
    came = expected == 1
    assert 0 < came.sum() < len(PIXELS)
    assert answer.exits[2].tolist() == expected.where(came, -1).tolist()
    assert answer.missing == {2: f"late: {came.sum()} of 6 samples came within 2 s"}
    assert 2 <= answer.seconds < 30  # it is held for longer
    filled = tiny.filled(2, answer.exits[2], HALF, IDS)
    assert torch.equal(answer.logits, tiny.combined({1: tiny.here(1, LAST), 2: filled}))
    assert {1, 2} == set(answer.compute)


def test_late_device_gets_the_next_batch(tiny: Tiny, addresses) -> None:
    student = tiny.student(2)
    released = held_at(student, 5)
    with (
        serving(service(student)) as slow,
        asking(tiny, addresses | {2: slow}, deadline=2.0) as aggregator,
    ):
        late = aggregator.infer(PIXELS, {1: LAST, 2: LAST})
        released.set()
        wait_ready(aggregator, 2)
        again = aggregator.infer(PIXELS, {1: LAST, 2: Random((1,) + (0,) * 6)}, IDS)
    assert without(tiny, 2, late)
    assert late.missing == {2: "late: 0 of 6 samples came within 2 s"}
    assert not again.missing


def test_unreachable_device_costs_no_deadline(tiny: Tiny, addresses, nowhere: str) -> None:
    with asking(tiny, addresses | {2: nowhere}, deadline=10.0, absent={2}) as aggregator:
        answers = [aggregator.infer(PIXELS, {1: LAST}) for _ in range(6)]
    assert all(without(tiny, 2, answer) for answer in answers)
    assert all(answer.missing[2].startswith("down: ") for answer in answers)
    assert sum(answer.seconds for answer in answers) < 30  # six deadlines are 60
    assert (answers[1].sent[2], answers[1].received[2]) == (0, 0)


def test_silent_device_costs_no_deadline(tiny: Tiny, addresses) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        asking(tiny, addresses | {2: f"127.0.0.1:{silent.getsockname()[1]}"}, 10.0, absent={2}) as aggregator,
    ):
        answers = [aggregator.infer(PIXELS, {1: LAST}) for _ in range(6)]
    assert all(without(tiny, 2, answer) for answer in answers)
    assert sum(answer.seconds for answer in answers) < 30


def missing_reason(aggregator: Aggregator) -> str:
    """Return why student 2 is missing from an answer."""
    return aggregator.infer(PIXELS, {1: LAST, 2: LAST}).missing.get(2, "").lower()


def test_wrong_certificate_is_reported(tiny: Tiny, addresses) -> None:
    other = self_signed(["elsewhere"])
    with serve(service(tiny.student(2)), "127.0.0.1:0", TOKEN, other) as running, ExitStack() as stack:
        channels = {
            1: stack.enter_context(connect(addresses[1], TOKEN)),
            2: stack.enter_context(connect(running.address, TOKEN, other.certificate)),
        }
        with Aggregator(tiny.whole, channels, 20.0) as aggregator:
            wait_until(
                lambda: missing_reason(aggregator).startswith("down: it cannot be reached"),
                60,
                "the reason is not reported",
            )
            assert "verification" in missing_reason(aggregator)


def test_device_comes_back_by_itself(tiny: Tiny, addresses) -> None:
    with ExitStack() as first:
        address = first.enter_context(serving(service(tiny.student(2)), f"127.0.0.1:{free_port()}"))
        with asking(tiny, addresses | {2: address}) as aggregator:
            assert not aggregator.infer(PIXELS, POLICIES, IDS).missing
            first.close()
            gone = aggregator.infer(PIXELS, {1: LAST, 2: LAST})
            assert without(tiny, 2, gone)
            assert gone.missing[2].startswith("it cannot be reached: ")
            assert gone.seconds < 15
            with serving(service(tiny.student(2)), address):
                wait_ready(aggregator, 2)
                answer = aggregator.infer(PIXELS, POLICIES, IDS)
    assert not answer.missing
    assert torch.equal(answer.logits, tiny.combined({k: tiny.here(k, POLICIES[k], IDS) for k in (1, 2)}))


def test_device_with_another_token_costs_no_deadline(tiny: Tiny, addresses) -> None:
    with (
        serving(service(tiny.student(2)), token="another") as other,
        asking(tiny, addresses | {2: other}) as aggregator,
    ):
        answers = [aggregator.infer(PIXELS, {1: LAST}) for _ in range(3)]
    assert all(without(tiny, 2, answer) for answer in answers)
    refusal = "it refused: UNAUTHENTICATED: the call does not carry the run's token"
    assert [answer.missing[2] for answer in answers] == [refusal] * 3
    assert sum(answer.seconds for answer in answers) < 30  # three deadlines are 60


@pytest.mark.parametrize(
    ("replies", "reason"),
    [
        ((b"\xff" * 40,), "malformed message"),
        ((b"",), "rows came that were not requested, or came twice"),
        ((reply(features=torch.tensor([[1.0, float("nan"), 1.0]])),), "not finite"),
        ((reply(features=torch.tensor([[1.0, float("inf"), 1.0]])),), "not finite"),
        ((reply(features=torch.ones(1, 4)),), "samples of shape"),
        ((reply(rows=(0, 0)),), "or came twice"),
        ((reply(rows=(6,)),), "not requested"),
        ((reply(rows=(2**32 - 1,)),), "not requested"),
        ((reply(exit_index=EXITS),), "exit 8 came, there are 7"),
        ((reply(seconds=float("nan")),), "nan seconds"),
        ((reply(seconds=-1.0),), "-1.0 seconds"),
        ((), "ended too early"),
    ],
)
def test_invalid_answer_counts_as_missing(tiny: Tiny, addresses, replies: tuple[bytes, ...], reason: str) -> None:
    with serving(replying(*replies)) as broken, asking(tiny, addresses | {2: broken}) as aggregator:
        answer = aggregator.infer(PIXELS, {1: LAST})
    assert without(tiny, 2, answer)
    assert reason in answer.missing[2]
    assert answer.seconds < 15  # the deadline is 20


def test_rows_before_an_invalid_reply_count(tiny: Tiny, addresses) -> None:
    broken = replying(reply((4, 1), 2, torch.tensor([[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]])), reply((1,)))
    with serving(broken) as address, asking(tiny, addresses | {2: address}) as aggregator:
        answer = aggregator.infer(PIXELS, {1: LAST})
    assert answer.exits[2].tolist() == [-1, 2, -1, -1, 2, -1]
    assert answer.labels() == answer.logits.argmax(1).tolist()  # the other device answered all
    features = tiny.whole.means[2].repeat(6, 1)
    features[1], features[4] = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
    theirs = Inference(features, torch.tensor([6, 2, 6, 6, 2, 6]))
    assert torch.equal(answer.logits, tiny.combined({1: tiny.here(1, LAST), 2: theirs}))


def test_batch_above_the_device_limit_is_refused(tiny: Tiny, addresses) -> None:
    with (
        serving(service(tiny.student(2), batch_size=2)) as small,
        asking(tiny, addresses | {2: small}) as aggregator,
    ):
        answer = aggregator.infer(PIXELS, {1: LAST})
    assert answer.missing == {2: "it refused: INVALID_ARGUMENT: 6 samples came, 1 to 2 are allowed"}


def test_student_without_a_device_is_missing(tiny: Tiny, addresses) -> None:
    with asking(tiny, {1: addresses[1]}) as aggregator:
        answer = aggregator.infer(PIXELS, {1: LAST})
    assert without(tiny, 2, answer)
    assert answer.missing == {2: "no device serves it"}
    assert not answer.late


def test_sample_without_any_answer_has_no_label(tiny: Tiny) -> None:
    broken = replying(reply((4, 1), 2, torch.tensor([[4.0, 5.0, 6.0], [1.0, 2.0, 3.0]])))
    with serving(broken) as address, asking(tiny, {2: address}) as aggregator:
        answer = aggregator.infer(PIXELS)
    labels = answer.logits.argmax(1).tolist()
    assert answer.labels() == [None, labels[1], None, None, labels[4], None]


def test_channel_of_an_unknown_student_is_refused(tiny: Tiny, addresses) -> None:
    with connect(addresses[1], TOKEN) as channel, pytest.raises(UserError, match="no student 3: the students are 1, 2"):
        Aggregator(tiny.whole, {1: channel, 3: channel}, deadline=1.0)

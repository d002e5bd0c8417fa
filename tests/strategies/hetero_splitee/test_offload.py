"""The server's layers of a finished network, and a device's calls to them."""

import copy
from collections.abc import Callable, Iterator

import grpc
import pytest
import torch
from torch import Tensor

from common.devices import channels_last
from common.networks import NetworkSpec, build, without_early_exits
from common.rpc import framing
from common.rpc.split_pb2 import OffloadReply, OffloadRequest
from common.rpc.tensors import encode
from strategies.hetero_splitee.learner import final_logits, server_part, statistics
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.origin import Origin
from strategies.hetero_splitee.prior import LabelCounts, log_prior
from strategies.hetero_splitee.remote import PAUSE, Answer, NoAnswer, Remote
from strategies.hetero_splitee.statistics import RunningStatistics

SPEC = without_early_exits(NetworkSpec("resnet_slim", 3, (1, 8, 8), width=2))
CPU = torch.device("cpu")
ORIGIN = Origin("first", client=0, cut=2, round=0)


def test_suffixes_answer_every_cut_bit_for_bit() -> None:
    network = build(SPEC, seed=3).eval()
    x = channels_last(torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        whole = network(x)[-1]
        features = {cut: network.features_at(x, cut) for cut in range(1, network.end)}
    suffixes = Suffixes(network.train(), torch.device("cpu"))
    assert list(suffixes.shapes) == list(features) == [1, 2, 3, 4]
    for cut, sent in features.items():
        assert suffixes.shapes[cut] == tuple(sent.shape[1:])
        assert torch.equal(suffixes.logits(7, cut, sent), whole)
    largest = max(sent[0].numel() for sent in features.values())
    assert suffixes.message_bytes(10) - suffixes.message_bytes(9) == 4 * largest


def test_suffixes_use_the_statistics_of_each_cut_and_client() -> None:
    network = build(SPEC, seed=3).eval()
    features = torch.randn(5, *network.features_at(network.example(1), 2).shape[1:])
    plain = Suffixes(network, CPU)
    own = {key: torch.full_like(value, 2) for key, value in statistics(plain.parts[2]).items()}
    third = {key: torch.full_like(value, 3) for key, value in own.items()}
    suffixes = Suffixes(network, CPU, RunningStatistics("own", {2: own}, {5: (2, third)}))
    expected = server_part(network, 2)
    assert torch.equal(plain.logits(0, 2, features), final_logits(expected, features))
    expected = copy.deepcopy(expected)
    expected.load_state_dict(expected.state_dict() | own)
    assert torch.equal(suffixes.logits(0, 2, features), final_logits(expected, features))
    of_a_client = copy.deepcopy(expected)
    of_a_client.load_state_dict(expected.state_dict() | third)
    assert torch.equal(suffixes.logits(5, 2, features), final_logits(of_a_client, features))
    assert torch.equal(suffixes.logits(0, 2, features), final_logits(expected, features))
    for cut in (1, 3, 4):
        features = torch.randn(2, *suffixes.shapes[cut])
        assert torch.equal(suffixes.logits(0, cut, features), plain.logits(0, cut, features))


def test_suffixes_adjust_the_answers_of_clients_that_they_know() -> None:
    network = build(SPEC, seed=3).eval()
    labels = torch.tensor([9, 0, 3])
    plain, own = Suffixes(network, CPU), Suffixes(network, CPU, counts=LabelCounts(3, {5: labels}))
    for cut in (1, 4):
        features = torch.randn(2, *plain.shapes[cut])
        answer = plain.logits(5, cut, features)
        assert torch.equal(own.logits(5, cut, features), answer + log_prior(labels))
        assert torch.equal(own.logits(6, cut, features), answer)


class Failure(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "details\n of  the test"


class Channel:
    """Gives the n-th call the n-th answer, and records requests and timeouts."""

    def __init__(self, *answers: grpc.StatusCode | Tensor | bytes) -> None:
        self.answers: Iterator[grpc.StatusCode | Tensor | bytes] = iter(answers)
        self.requests: list[bytes] = []
        self.timeouts: list[float] = []

    def unary_unary(self, name: str) -> Callable[..., bytes]:
        assert name == "/earlybloom.Split/Offload"
        return self._call

    def _call(self, request: bytes, timeout: float) -> bytes:
        self.requests.append(request)
        self.timeouts.append(timeout)
        answer = next(self.answers)
        if isinstance(answer, grpc.StatusCode):
            raise Failure(answer)
        return answer if isinstance(answer, bytes) else reply(answer)


def reply(logits: Tensor) -> bytes:
    described, data = encode(logits, "fp32")
    return framing.join(OffloadReply(logits=described), data)


def remote(channel: Channel, clock: Callable[[], float] = lambda: 0.0, coding: str = "fp32") -> Remote:
    return Remote(channel, ORIGIN, classes=3, coding=coding, deadline=1.5, clock=clock)  # type: ignore[arg-type]


def test_request_names_run_and_cut_and_bytes_are_counted() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 0.5]])
    channel = Channel(logits, logits)
    features = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    answer = remote(channel).ask(features.numpy())
    assert torch.equal(torch.from_numpy(answer.logits), logits)
    assert (answer.sent, answer.received) == (len(channel.requests[0]), len(reply(logits)))
    assert channel.timeouts == [1.5]
    head, data = framing.split(channel.requests[0])
    header = OffloadRequest.FromString(head).header
    assert (header.run, header.cut, len(data)) == ("first", 2, 4 * features.numel())
    assert 0 < answer.sent - 4 * features.numel() < 64
    small = remote(channel, coding="uint8").ask(features)
    assert len(framing.split(channel.requests[1])[1]) == features.numel()
    assert small.sent < answer.sent / 3


def test_pause_after_a_failure_doubles() -> None:
    now, lost, logits = [100.0], grpc.StatusCode.UNAVAILABLE, torch.zeros(1, 3)
    channel = Channel(lost, lost, logits, lost, lost)
    device = remote(channel, lambda: now[0])

    def ask(at: float) -> Answer | str:
        now[0] = at
        try:
            return device.ask(torch.zeros(1, 4, 8, 8).numpy())
        except NoAnswer as problem:
            return str(problem)

    first = ask(100.0)
    assert first == "the server cannot be reached: details of the test"
    assert ask(100.0 + PAUSE[0] - 0.01) == first
    assert len(channel.requests) == 1  # no second call
    assert ask(100.0 + PAUSE[0]) == first
    assert len(channel.requests) == 2
    assert ask(100.0 + PAUSE[0] + 2 * PAUSE[0] - 0.01) == first
    assert len(channel.requests) == 2
    assert isinstance(ask(100.0 + 3 * PAUSE[0]), Answer)
    ask(200.0)  # after an answer, the next pause is short again
    assert len(channel.requests) == 4
    ask(200.0 + PAUSE[0])
    assert len(channel.requests) == 5


def test_pause_has_a_maximum() -> None:
    now = [0.0]
    device = remote(Channel(*[grpc.StatusCode.UNAVAILABLE] * 20), lambda: now[0])
    for _ in range(20):
        with pytest.raises(NoAnswer):
            device.ask(torch.zeros(1, 4, 8, 8).numpy())
        now[0] += PAUSE[1]


@pytest.mark.parametrize(
    ("code", "words", "asked_again"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "refused: UNAUTHENTICATED: details of the test", False),
        (grpc.StatusCode.INVALID_ARGUMENT, "refused: INVALID_ARGUMENT", False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "did not answer within 1.5 s", True),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "refused: RESOURCE_EXHAUSTED", True),
    ],
)
def test_refusal_is_final_and_timeout_is_not(code: grpc.StatusCode, words: str, asked_again: bool) -> None:
    now = [0.0]
    channel = Channel(code, torch.zeros(1, 3))
    device = remote(channel, lambda: now[0])
    with pytest.raises(NoAnswer, match=words):
        device.ask(torch.zeros(1, 4, 8, 8).numpy())
    now[0] = 1e6
    if asked_again:
        assert device.ask(torch.zeros(1, 4, 8, 8).numpy()).logits.tolist() == [[0, 0, 0]]
    else:
        with pytest.raises(NoAnswer, match=words):
            device.ask(torch.zeros(1, 4, 8, 8).numpy())
    assert len(channel.requests) == 1 + asked_again


def test_malformed_answer_raises_no_answer() -> None:
    for wrong in (torch.zeros(2, 3), torch.zeros(1, 4), b"\xff"):
        with pytest.raises(NoAnswer, match="the server's answer is malformed"):
            remote(Channel(reply(wrong) if isinstance(wrong, Tensor) else wrong)).ask(torch.zeros(1, 4, 8, 8).numpy())


def test_features_that_cannot_be_encoded_cause_no_pause() -> None:
    channel = Channel(torch.zeros(1, 3))
    device = remote(channel, coding="fp16")
    with pytest.raises(NoAnswer, match="not finite as fp16"):
        device.ask(torch.full((1, 4, 8, 8), 1e6).numpy())
    assert device.ask(torch.zeros(1, 4, 8, 8).numpy()).logits.shape == (1, 3)  # without a pause

"""A device's calls to the server's layers, without a run: `offload.py` is the other end.

A device calls once per batch and waits no longer than its deadline. After a failure it makes no calls for a while: it
has its own exit and need not wait again for every image.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import numpy as np
from numpy.typing import NDArray

from common.rpc import framing
from common.rpc.arrays import decode, encode
from common.rpc.methods import OFFLOAD
from common.rpc.split_pb2 import OffloadReply, OffloadRequest
from strategies.hetero_splitee.origin import Origin

OVERHEAD = 1 << 16  # bytes of a message beside its features
PAUSE = 1.0, 60.0  # seconds without calls after the first failure, and the maximum to which each further one doubles it
# Codes that the server would return for every other batch, too
FINAL = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.UNIMPLEMENTED,
)


class NoAnswer(RuntimeError):
    """The server refused, could not be reached or did not answer in time; the message says which, in one line."""


def bytes_per_sample(shape: tuple[int, ...]) -> int:
    """Return the maximum size of one sample's features, in bytes: that of float32."""
    return 4 * math.prod(shape)


@dataclass(frozen=True)
class Answer:
    """The server's answer to a batch."""

    logits: NDArray[np.float32]  # (B, classes)
    sent: int  # bytes of the request, without the overhead of gRPC and TLS
    received: int  # bytes of the reply, likewise


class Remote:
    """A device's connection to the server's layers after its cut.

    Args:
        channel: from `common.rpc.channels.connect`.
        origin: run, client and cut of the device's part.
        classes: length of a logit vector.
        coding: of the features: "fp32", "fp16", "bf16" or "uint8".
        deadline: seconds that a batch may take.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        origin: Origin,
        classes: int,
        *,
        coding: str = "fp32",
        deadline: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._method, self._origin, self._classes = channel.unary_unary(OFFLOAD), origin, classes
        self._coding, self._deadline, self._clock = coding, deadline, clock
        self._pause, self._again, self._reason = PAUSE[0], 0.0, ""

    def ask(self, features: NDArray[np.float32]) -> Answer:
        """Return the answer to features (B, ...).

        Raises `NoAnswer`: for a while after a failure at once, without a call, and always after a final refusal.
        """
        if self._reason and self._clock() < self._again:
            raise NoAnswer(self._reason)
        try:
            described, data = encode(features, self._coding)
        except ValueError as error:  # the batch is invalid; the server is not to blame
            raise NoAnswer(str(error)) from error
        request = framing.join(OffloadRequest(header=self._origin.header(0), features=described), data)
        try:
            reply = self._method(request, timeout=self._deadline)
            head, values = framing.split(reply)
            logits = decode(OffloadReply.FromString(head).logits, values, (self._classes,), len(features))
        except grpc.RpcError as error:
            raise self._failed(_reason(error, self._deadline), final=error.code() in FINAL) from error
        except ValueError as error:
            raise self._failed(f"the server's answer is malformed: {error}", final=False) from error
        self._pause, self._reason = PAUSE[0], ""
        return Answer(logits, len(request), len(reply))

    def _failed(self, reason: str, *, final: bool) -> NoAnswer:
        """Record when to call again."""
        self._again = float("inf") if final else self._clock() + self._pause
        self._pause, self._reason = min(2 * self._pause, PAUSE[1]), reason
        return NoAnswer(reason)


def _reason(error: grpc.RpcError, deadline: float) -> str:
    details = " ".join(str(error.details()).split())
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"the server did not answer within {deadline:g} s"
    if error.code() == grpc.StatusCode.UNAVAILABLE:
        return f"the server cannot be reached: {details}"
    return f"the server refused: {error.code().name}: {details}"

"""The device's side of distributed inference: it runs its student and sends each sample's features from its exit.

For each batch of images (DistrEE, arXiv 2502.15735, online algorithm):

1. Run the student up to its next exit.
2. Send the features of the samples that leave there by the exit policy, and compute nothing more for them.
3. Go on with the other samples, unless the caller has disconnected.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from common.errors import UserError
from common.rpc import framing
from common.rpc.arrays import NAMES, decode_pixels, encode
from common.rpc.methods import INFER
from common.rpc.refusals import Refused, abort, malformed, read
from common.rpc.students_pb2 import InferReply, InferRequest
from strategies.distree.exits.policies import (
    CALIBRATED,
    PUBLISHED,
    Array,
    ExitPolicy,
    FeatureDifference,
    LastExit,
    Leaves,
    check_exits,
    policy_from_json,
    remedy,
)

OVERHEAD = 1 << 16  # bytes of a message besides those of its samples
LOOK = 0.1  # seconds between two checks whether a waiting caller is still connected
_policy = lru_cache(256)(policy_from_json)  # requests repeat the same few policies


@dataclass(frozen=True)
class Stopped:
    """The samples that leave a student at one exit."""

    exit: int  # from 0
    rows: NDArray[np.int64]  # (b,), rising: which samples of the batch
    features: NDArray[np.float32]  # (b, |P_k|)


class Served(Protocol):
    """A student that is ready to compute, with torch or without."""

    @property
    def run(self) -> str:
        """Id of the training."""

    @property
    def number(self) -> int:
        """The student's number, from 1."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """(C, H, W) of an image."""

    @property
    def length(self) -> int:
        """|P_k|, the length of a feature."""

    @property
    def num_exits(self) -> int:
        """Number of exits."""

    @property
    def policies(self) -> Mapping[str, ExitPolicy]:
        """Exit policies by name."""

    def classify(self, exit_index: int, features: Array, own: bool = False) -> Array:
        """Return the logits (b, classes) of this student alone, see `exits.scores.Classify`."""

    def leave(self, pixels: NDArray[np.uint8], leaves: Leaves) -> Iterator[Stopped]:
        """Yield the samples that leave at each exit, shallow to deep, possibly none.

        Units up to an exit run only when the caller asks for it. The last yield is where the last sample leaves.
        """


def own_policy(stored: Served, name: str = "") -> ExitPolicy:
    """Return the exit policy that a device uses for requests without one.

    This is the stored policy of this name. Without a name it is the calibrated one; if none is stored, the paper's for
    a student of 7 exits, else the last exit. Raises `UserError` when no policy has this name.
    """
    if name and name not in stored.policies:
        known = ", ".join(sorted(stored.policies)) or "none"
        raise UserError(f"the student has no policy {name!r}; stored are: {known}{remedy(name)}")
    num_exits = stored.num_exits
    published = len(PUBLISHED) + 1 == num_exits
    fallback = FeatureDifference(PUBLISHED) if published else LastExit(num_exits)
    return stored.policies.get(name or CALIBRATED, fallback)


def message_bytes(stored: Served, batch_size: int) -> int:
    """Return the largest size in bytes of a request or a reply of `batch_size` samples."""
    # a varint of 64 bits takes 10 bytes, a scale and an offset 8
    return OVERHEAD + batch_size * (max(math.prod(stored.input_shape), 4 * stored.length) + 32)


class StudentService:
    """The servicer of `Students`. It computes one exit of one batch at a time; other calls wait for their turn.

    Args:
        stored: the student.
        policy: the device's own; a request may bring another.
        batch_size: samples per request, at most.
        slowdown: factor on the computing time, to emulate a slower device; may change while the service runs.
    """

    def __init__(
        self,
        stored: Served,
        policy: ExitPolicy,
        *,
        batch_size: int = 64,
        slowdown: float = 1.0,
    ) -> None:
        self._stored, self._policy = stored, policy
        self._batch_size, self.slowdown = batch_size, slowdown
        self._turn = Lock()

    def register(self, server: grpc.Server) -> None:
        """Add the service to a server that has not been started; bytes in, bytes out."""
        service, method = INFER.removeprefix("/").split("/")
        handlers = {method: grpc.unary_stream_rpc_method_handler(self._infer)}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def warm_up(self) -> None:
        """Run one blank image to the last exit, since the first image includes set-up."""
        blank = np.zeros((1, *self._stored.input_shape), np.uint8)
        for _ in self._stored.leave(blank, LastExit(self._stored.num_exits).start()):
            pass

    def _infer(self, raw: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Yield the samples that leave at each exit."""
        try:
            request, data = read(InferRequest, raw)
            pixels, coding = self._pixels(request, data), self._coding(request)
            policy = self._chosen(request.policy)
            leaves = policy.start(self._stored.classify, request.ids)
            for left, seconds in self._compute(pixels, leaves, context):
                if len(left.rows):
                    yield _reply(left, seconds, coding)
        except UserError as error:  # the policy is damaged, or does not fit the student
            abort(context, malformed(str(error)))
        except Refused as refused:
            abort(context, refused)

    def _compute(
        self, pixels: NDArray[np.uint8], leaves: Leaves, context: grpc.ServicerContext
    ) -> Iterator[tuple[Stopped, float]]:
        """Yield the samples that leave at each exit and the seconds so far, until the last one, or a disconnect."""
        steps, missing, seconds = self._stored.leave(pixels, leaves), len(pixels), 0.0
        while missing:
            # the lock per exit, not per batch: a caller that does not read would block all others
            while not self._turn.acquire(timeout=LOOK):
                if not context.is_active():
                    return
            try:
                if not context.is_active():
                    return
                started = time.perf_counter()
                left = next(steps)
                if self.slowdown > 1:
                    time.sleep((time.perf_counter() - started) * (self.slowdown - 1))
                seconds += time.perf_counter() - started
            finally:
                self._turn.release()
            missing -= len(left.rows)
            yield left, seconds

    def _pixels(self, request: InferRequest, data: framing.Data) -> NDArray[np.uint8]:
        """Return uint8 (B, C, H, W); raises `Refused` before any other memory is allocated."""
        if (request.run, request.student) != (self._stored.run, self._stored.number):
            here = f"student {self._stored.number} of run {self._stored.run!r}"
            reason = f"the request asks for student {request.student} of run {request.run!r}, here is {here}"
            if request.run != self._stored.run:
                reason += ": copy the students of one training to all devices and to the server"
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, reason)
        try:
            pixels = decode_pixels(request.shape, data, self._stored.input_shape, self._batch_size)
        except ValueError as error:
            raise malformed(str(error)) from error
        if len(request.ids) not in (0, len(pixels)):
            raise malformed(f"{len(request.ids)} ids came with {len(pixels)} samples")
        return pixels

    def _coding(self, request: InferRequest) -> str:
        if request.coding not in NAMES:
            raise malformed(f"unknown coding {request.coding}")
        return NAMES[request.coding]

    def _chosen(self, text: str) -> ExitPolicy:
        """Return the policy of a request; raises `UserError` when it is damaged or for another student."""
        policy = _policy(text) if text else self._policy
        check_exits(policy.num_exits, self._stored.num_exits)
        return policy


def _reply(left: Stopped, seconds: float, coding: str) -> bytes:
    try:
        # samples as channels, so that "uint8" sends one scale per sample, not per feature
        features, data = encode(left.features[None, :, :, None], coding)
    except ValueError as error:
        raise Refused(grpc.StatusCode.INTERNAL, f"exit {left.exit + 1}: {error}") from error
    return framing.join(InferReply(exit=left.exit, rows=left.rows.tolist(), features=features, seconds=seconds), data)

"""One device as the aggregator sees it: its answer to a batch, and whether it is ready for the next one.

After a batch without any answer, a background probe checks the device until it is ready. The batches in between skip
the device at once instead of waiting for their deadline.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock, Thread

import grpc
import torch
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from common.rpc import framing
from common.rpc.framing import Data
from common.rpc.methods import INFER, STUDENTS
from common.rpc.students_pb2 import InferReply, InferRequest
from common.rpc.tensors import CODINGS, decode

GRACE = 0.1  # seconds after an unanswered batch in which later batches still wait for the device to become ready
PROBE, PAUSE = 2.0, 0.2  # seconds that a probe may take, and between two probes
HEALTH = "/grpc.health.v1.Health/Check"
ABSENT = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Collected:
    """A device's answer to one batch so far: rows arrive one after another, until `wait` returns.

    Args:
        samples: B.
        length: |P_k|, the length of a feature.
        num_exits: J.
        started: start of the batch, by `time.perf_counter`.
        deadline: seconds from then.
    """

    def __init__(self, samples: int, length: int, num_exits: int, started: float, deadline: float) -> None:
        self.features = torch.zeros(samples, length)  # (B, |P_k|), zeros in missing rows
        self.exits = torch.full((samples,), -1)  # int64 (B,), from 0; -1 in missing rows
        self.problem = ""  # why rows are missing, if known
        self.late = False  # rows are missing because the deadline passed after the request was sent
        self.absent = False  # the device may be unreachable
        self.sent = self.received = 0  # bytes, without the overhead of gRPC and TLS
        self.compute = self.arrived = 0.0  # seconds of computing on the device, and until its last rows arrived
        self._num_exits, self._started, self._deadline = num_exits, started, deadline
        self._open, self._closed, self._lock, self._done = set(range(samples)), False, Lock(), Event()

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return max(0.0, self._started + self._deadline - time.perf_counter())

    def add(self, raw: bytes) -> None:
        """Add the rows of a reply; raises `ValueError` when it is malformed or does not fit the request."""
        head, data = framing.split(raw)
        reply = InferReply.FromString(head)
        with self._lock:
            if self._closed:
                return
            rows = set(reply.rows)
            if not rows or len(rows) < len(reply.rows) or not rows <= self._open:
                raise ValueError("rows came that were not requested, or came twice")
            if reply.exit >= self._num_exits:
                raise ValueError(f"exit {reply.exit + 1} came, there are {self._num_exits}")
            if not 0 <= reply.seconds < math.inf:
                raise ValueError(f"{reply.seconds} seconds of computing came")
            features = decode(reply.features, data, (len(rows), self.features.shape[1], 1), 1)
            places = list(reply.rows)
            self.features[places], self.exits[places] = features[0, :, :, 0], reply.exit
            self._open -= rows
            self.compute, self.arrived = reply.seconds, time.perf_counter() - self._started
            self.received += len(raw)
            if not self._open:
                self._done.set()

    def fail(self, problem: str, *, absent: bool = False) -> None:
        """End the answer with a problem, if rows are missing."""
        with self._lock:
            if not self._closed and self._open:
                self.problem, self.absent = problem, absent
        self._done.set()

    def wait(self) -> None:
        """Wait for all rows, the end of the answer or the deadline; rows that arrive later are dropped."""
        self._done.wait(self.left)
        with self._lock:
            self._closed = True
            if self._open and not self.problem:
                came = len(self.exits) - len(self._open)
                self.problem = f"late: {came} of {len(self.exits)} samples came within {self._deadline:g} s"
                self.late, self.absent = True, not came


class RemoteStudent:
    """A device that serves a student.

    Args:
        channel: from `common.rpc.channels.connect`.
        run: id of the training whose student the requests ask for.
        number: the student's number, from 1.
        length: |P_k|, the length of its features.
        num_exits: J.
        coding: of the features: "fp32", "fp16", "bf16" or "uint8".
    """

    def __init__(self, channel: grpc.Channel, run: str, number: int, length: int, num_exits: int, coding: str) -> None:
        self._method, self._health = channel.unary_stream(INFER), channel.unary_unary(HEALTH)
        self._run, self._number, self._length, self._num_exits = run, number, length, num_exits
        self._coding = CODINGS[coding]
        # two readers: while one waits for a device that does not end its answer, the other takes the next batch
        self._readers = ThreadPoolExecutor(2, thread_name_prefix=f"student-{number}")
        self._ready, self._closed = Event(), Event()
        self._problem, self._trusted = "it has not reported that it is ready", time.perf_counter()
        self._check: grpc.Future | None = None
        self._prober = self._probe()

    def ask(
        self, shape: Sequence[int], pixels: Data, policy: str, ids: Sequence[int], started: float, deadline: float
    ) -> Collected:
        """Send a batch, uint8 (B, C, H, W), and return at once its future answer, for `finish`."""
        head = InferRequest(
            run=self._run, student=self._number, shape=shape, ids=ids, policy=policy, coding=self._coding
        )
        collected = Collected(shape[0], self._length, self._num_exits, started, deadline)
        self._readers.submit(self._exchange, head, pixels, collected)
        return collected

    def finish(self, collected: Collected) -> None:
        """Wait for the answer or its deadline; probe the device if it may be unreachable."""
        collected.wait()
        if collected.late and not collected.sent and not self._ready.is_set():  # the request was never sent
            collected.late, collected.problem = False, f"down: {self._problem}"
        if collected.absent and self._ready.is_set():
            self._problem, self._trusted = collected.problem, time.perf_counter() + GRACE
            self._ready.clear()
            self._prober = self._probe()

    def wait_ready(self, until: float) -> None:
        """Wait until the device is ready, at most until this moment of `time.perf_counter`."""
        self._ready.wait(max(0.0, until - time.perf_counter()))

    def close(self) -> None:
        """Stop all requests; the channel stays open."""
        self._closed.set()
        if self._check is not None:
            self._check.cancel()
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._prober.join()

    def _exchange(self, head: InferRequest, pixels: Data, collected: Collected) -> None:
        trust = max(0.0, self._trusted - time.perf_counter())
        if not self._ready.wait(min(trust, collected.left)):
            collected.fail(f"down: {self._problem}")
            return
        request = framing.join(head, pixels)
        collected.sent = len(request)
        call = self._method(request, timeout=collected.left)
        try:
            for raw in call:
                collected.add(raw)
            collected.fail("its answer ended too early")
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                collected.fail("")  # `wait` writes the message "late"
            else:
                collected.fail(_reason(error), absent=error.code() in ABSENT)
        except (ValueError, DecodeError) as error:
            collected.fail(f"its answer is invalid: {error}")
            call.cancel()

    def _probe(self) -> Thread:
        """Start a thread that probes the device until it is ready."""
        thread = Thread(target=self._until_ready, name=f"student-{self._number}-probe", daemon=True)
        thread.start()
        return thread

    def _until_ready(self) -> None:
        request = health_pb2.HealthCheckRequest(service=STUDENTS).SerializeToString()
        while not self._closed.is_set():
            try:
                # not `wait_for_ready`, which hides why the connection fails, such as a wrong certificate
                self._check = self._health.future(request, timeout=PROBE)
                status = health_pb2.HealthCheckResponse.FromString(self._check.result()).status
                problem = "" if status == health_pb2.HealthCheckResponse.SERVING else "it does not serve"
            except grpc.RpcError as error:
                # a device that refuses the probe is reachable: it answers each batch with the reason
                problem = _reason(error) if error.code() in ABSENT else ""
            except (DecodeError, ValueError, grpc.FutureCancelledError) as error:  # no answer, or the channel is closed
                problem = str(error)
            if not problem:
                self._ready.set()
                return
            self._problem = problem
            self._closed.wait(PAUSE)


def _reason(error: grpc.RpcError) -> str:
    details = " ".join(str(error.details()).split())
    if error.code() in ABSENT:
        return f"it cannot be reached: {details}"
    return f"it refused: {error.code().name}: {details}"

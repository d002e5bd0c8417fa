"""Distributed inference: every device gets the images, their answers add up to the logits (DistrEE, arXiv 2502.15735).

For each batch:

1. Send the pixels to all devices at the same time, once.
2. Collect the features of each sample from each device as they arrive, until all are here or the deadline passes.
3. Where a device's features are missing, use its mean feature at the last exit instead, and report it.
4. Z = mean_k b^(j_k) + sum_k W_k^(j_k) F_k.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
import torch
from torch import Tensor

from common.errors import UserError
from strategies.distree.exits.policies import ExitPolicy
from strategies.distree.model.stored import StoredStudents
from strategies.distree.serving.remote import Collected, RemoteStudent

START = 3.0  # seconds to wait at the start until the devices report that they serve


@dataclass(frozen=True)
class Answer:
    """The devices' answer to a batch."""

    logits: Tensor  # (B, classes)
    exits: dict[int, Tensor]  # student -> int64 (B,), the exit from 0 that answered; -1 where the answer is missing
    missing: dict[int, str]  # student -> why some of its rows are missing
    late: frozenset[int]  # students among these whose device got the request but missed the deadline
    seconds: float  # from the call to the logits
    compute: dict[int, float]  # student -> seconds of computing, by the device's clock; only devices that answered
    arrived: dict[int, float]  # student -> seconds until its last features arrived; only devices that answered
    sent: dict[int, int]  # student -> bytes, without the overhead of gRPC and TLS
    received: dict[int, int]  # student -> bytes, likewise

    def labels(self) -> list[int | None]:
        """Return the class of each sample; None where no device answered, as the means are the same for all images."""
        answered = torch.stack(list(self.exits.values())).ge(0).any(0).tolist()
        return [label if known else None for label, known in zip(self.logits.argmax(1).tolist(), answered, strict=True)]


class Aggregator:
    """Sends batches to the devices and adds up their answers; for one thread at a time.

    As a context manager it waits at the start until the devices report that they serve, so that no batch spends its
    deadline on connecting, and stops all requests at the end. Batches skip a device that has not reported.

    Args:
        stored: the students' classifier, and the stand-ins for missing devices.
        channels: student -> channel to its device, from `common.rpc.channels.connect`; the caller closes them.
        deadline: seconds that a batch may take.
        coding: of the features: "fp32", "fp16", "bf16" or "uint8".

    Raises:
        UserError: a channel is for an unknown student.
    """

    def __init__(
        self, stored: StoredStudents, channels: Mapping[int, grpc.Channel], deadline: float, coding: str = "fp32"
    ) -> None:
        spec = stored.students.spec
        if unknown := sorted(set(channels) - set(spec.numbers)):
            raise UserError(f"no student {unknown[0]}: the students are {', '.join(map(str, spec.numbers))}")
        self.deadline = deadline
        self._stored, num_exits = stored, stored.students.num_exits
        sizes = dict(zip(spec.numbers, map(len, spec.partition), strict=True))
        self._remotes = {
            number: RemoteStudent(channels[number], stored.run, number, sizes[number], num_exits, coding)
            for number in sorted(channels)
        }

    @torch.no_grad()
    def infer(
        self, images: Tensor, policies: Mapping[int, ExitPolicy] | None = None, ids: Sequence[int] = ()
    ) -> Answer:
        """Return the answer to pixels, uint8 (B, C, H, W).

        Args:
            images: on the CPU.
            policies: student -> its exit policy; a device without an entry uses its own.
            ids: numbers of the samples, which the random policy needs.
        """
        started = time.perf_counter()
        policies = policies or {}
        pixels = images.contiguous().view(-1).numpy().data
        collected: dict[int, Collected] = {}
        for number, remote in self._remotes.items():
            policy = policies[number].to_json() if number in policies else ""
            collected[number] = remote.ask(images.shape, pixels, policy, ids, started, self.deadline)
        for number, remote in self._remotes.items():
            remote.finish(collected[number])
        spec, num_exits = self._stored.students.spec, self._stored.students.num_exits
        for number, part in zip(spec.numbers, spec.partition, strict=True):
            if number not in collected:
                collected[number] = nothing = Collected(len(images), len(part), num_exits, started, 0.0)
                nothing.fail("no device serves it")
        logits = self._combined(collected)
        answered = {k: c for k, c in collected.items() if c.received}
        return Answer(
            logits,
            {k: c.exits for k, c in collected.items()},
            {k: c.problem for k, c in collected.items() if c.problem},
            frozenset(k for k, c in collected.items() if c.late),
            time.perf_counter() - started,
            {k: c.compute for k, c in answered.items()},
            {k: c.arrived for k, c in answered.items()},
            {k: c.sent for k, c in collected.items()},
            {k: c.received for k, c in collected.items()},
        )

    def close(self) -> None:
        """Stop all requests; the channels stay open."""
        for remote in self._remotes.values():
            remote.close()

    def __enter__(self) -> "Aggregator":
        until = time.perf_counter() + START
        for remote in self._remotes.values():
            remote.wait_ready(until)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _combined(self, collected: Mapping[int, Collected]) -> Tensor:
        """Return the logits (B, classes), with mean features at the last exit for missing rows."""
        features, exits = dict[int, Tensor](), dict[int, Tensor]()
        for number, device in collected.items():
            came = device.exits >= 0
            features[number] = torch.where(came[:, None], device.features, self._stored.means[number])
            exits[number] = device.exits.where(came, self._stored.students.num_exits - 1)
        return self._stored.students.classifier.combine(features, exits)

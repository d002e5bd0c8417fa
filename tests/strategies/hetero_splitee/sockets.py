"""A split service on a real socket, a thread that takes its batches, and a connection that breaks at chosen bytes."""

import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress

import grpc
import torch
from torch import Tensor

from common.rpc.certificates import Certificate
from common.rpc.channels import Limits, RunningServer, connect, new_token, serve
from common.seeding import generator
from strategies.hetero_splitee.inbox import Batch, Inbox, Missing, OpenRound
from strategies.hetero_splitee.service import Answer, Expected, SplitService
from strategies.hetero_splitee.stream import FeatureStream, Origin

RUN = "test"
SHAPES = {1: (4, 8, 8), 2: (6, 5)}  # by cut: feature maps, and tokens
EXPECTED = Expected(RUN, SHAPES, classes=10, batch_size=8, least=2)
TOKEN = new_token()


def origin(client: int = 0, cut: int = 1, round_: int = 1, version: int = 7, run: str = RUN) -> Origin:
    return Origin(run, client, cut, round_, version)


def batch(client: int, index: int, cut: int = 1) -> tuple[Tensor, Tensor]:
    """Return features (8, ...) and labels (8,) that differ for every client and index."""
    source = generator("batch", client, index)
    return torch.randn(8, *SHAPES[cut], generator=source), torch.randint(0, 10, (8,), generator=source)


def same(taken: Batch | Missing, client: int, index: int, cut: int = 1) -> bool:
    """Return whether a taken batch is the one from `batch`."""
    assert isinstance(taken, Batch)
    features, labels = batch(client, index, cut)
    place = (taken.client, taken.cut, taken.index) == (client, cut, index)
    return place and torch.equal(taken.features, features) and torch.equal(taken.labels, labels)


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until other threads make the condition true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"the condition is still false after {seconds:g} s"
        time.sleep(0.005)


def accepted(inbox: Inbox) -> dict[int, int]:
    """Return the number of batches that have arrived, by client."""
    return {client: queue.accepted for client, queue in inbox.queues.items()}


def late(inbox: Inbox) -> list[int]:
    """Return the clients that are skipped."""
    return [client for client, queue in inbox.queues.items() if queue.late]


class Bench:
    """A service, its server, and a round with an inbox."""

    def __init__(self) -> None:
        self._channels: list[grpc.Channel] = []
        self.certificate: Certificate | None = None
        self.server: RunningServer
        self.service: SplitService

    def start(
        self, answer: Answer | None = None, certificate: Certificate | None = None, limits: Limits | None = None
    ) -> None:
        self.certificate, self.service = certificate, SplitService(EXPECTED, answer)
        self.server = serve(self.service.register, "127.0.0.1:0", TOKEN, certificate, limits or Limits())

    def open(self, cuts: dict[int, int], round_: int = 1, window: int = 2, gradients: bool = False) -> Inbox:
        inbox = Inbox(OpenRound(RUN, round_, 7, cuts, window, gradients))
        self.service.open(inbox)
        return inbox

    def channel(self, address: str = "", token: str = TOKEN, limits: Limits | None = None) -> grpc.Channel:
        certificate = self.certificate and self.certificate.certificate
        self._channels.append(connect(address or self.server.address, token, certificate, limits or Limits()))
        return self._channels[-1]

    def stream(self, origin_: Origin | None = None, address: str = "", **options) -> FeatureStream:
        return FeatureStream(self.channel(address), origin_ or origin(), **{"deadline": 60.0, **options})

    def stop(self) -> None:
        for channel in self._channels:
            channel.close()
        self.service.close()
        self.server.stop(grace=0.2)


def take_all(inbox: Inbox, client: int = 0, gradient: Callable[[Batch], Tensor] | None = None) -> list[Batch]:
    """Take one client's batches until its end; with `gradient`, answer each with one."""
    taken: list[Batch] = []
    while isinstance(batch_ := inbox.take(client, len(taken), 60), Batch):
        taken.append(batch_)
        if gradient:
            inbox.reply(client, batch_.index, gradient(batch_))
    assert batch_ == Missing.ENDED
    return taken


class Background(threading.Thread):
    """Runs a function beside the test; `result` waits for its return value."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._work, self._result, self._error = work, None, None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._error = error

    def result(self):
        self.join(60)
        assert not self.is_alive(), "still running"
        if self._error is not None:
            raise self._error
        return self._result


class BreakingProxy:
    """Forwards TCP connections to a port; connection k is reset once it has forwarded `limits[k]` bytes.

    Only bytes in one direction count: "up" to the server, or "down" from it. Further connections do not break. With
    `drop` set, the next bytes to the server are lost together with their connection.
    """

    def __init__(self, port: int, limits: Sequence[int] = (), direction: str = "up") -> None:
        self.drop = False
        self._port, self._limits, self._direction = port, list(limits), direction
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._port))
            limit = self._limits[self.connections] if self.connections < len(self._limits) else None
            self.connections += 1
            self._sockets += [client, server]
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target, direction in ((client, server, "up"), (server, client, "down")):
                bound = limit if direction == self._direction else None
                threading.Thread(target=self._forward, args=(source, target, direction, bound), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, direction: str, left: int | None) -> None:
        try:
            while data := source.recv(4096 if left is None else min(4096, max(1, left))):
                if direction == "up" and self.drop:
                    self.drop = False
                    break
                target.sendall(data)
                if left is not None and (left := left - len(data)) <= 0:
                    break
        except OSError:
            pass
        for end in (source, target):
            with closing(end), suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "BreakingProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._sockets:
            end.close()

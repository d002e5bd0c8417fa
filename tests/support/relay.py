"""A TCP relay in a thread: the link between a device and its server, which a test can cut without privileges."""

import select
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

POLL = 0.1  # seconds


class Relay:
    """Forwards connections at `port` to a port of loopback; `seen` gets what clients send, as it comes.

    with Relay(server_port) as relay:
        relay.cut()  # data stops, but neither end sees its connection close
        relay.mend()  # waiting data passes
    """

    def __init__(self, target: int, seen: Callable[[bytes], object] | None = None) -> None:
        self.target, self.seen = target, seen
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self._passing, self._closed = threading.Event(), False
        self._passing.set()
        self._ends: list[socket.socket] = []

    def cut(self, *, closing: bool = False) -> None:
        """Stop all data; with `closing`, also end all connections, as a router that restarts."""
        self._passing.clear()
        if closing:
            time.sleep(2 * POLL)
            for end in self._ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let data pass again."""
        self._passing.set()

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closed = True
        self.mend()
        for end in (self.listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                inside, _ = self.listener.accept()
                outside = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # closed, or the server does not listen
                continue
            self._ends += [inside, outside]
            for one, other, seen in ((inside, outside, self.seen), (outside, inside, None)):
                threading.Thread(target=self._pass_on, args=(one, other, seen), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, seen: Callable[[bytes], object] | None) -> None:
        with suppress(OSError, ValueError):
            while not self._closed:
                self._passing.wait()
                if not select.select([source], [], [], POLL)[0]:
                    continue
                data = source.recv(2**16)
                self._passing.wait()
                if not data:
                    break
                if seen:
                    seen(data)
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

"""A node's worker: a process that stays beside the SuperNode, with torch imported, networks built and images decoded.

It does the work of one message after another, whatever waits; see `handover` for who asks it. It leaves when nothing
came for a while, when the process beside which it stays has gone, or when an app of another version comes in. It ends
at once when the ClientApp whose message it works on is killed, as that process would have, had it done the work itself.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR, INFO, WARNING
from select import select
from typing import Any

import torch
from flwr.supercore import log

from client.warm import frames
from client.warm.dispatch import BUNDLE
from client.warm.listener import Keeper
from client.work import answer
from common import logs
from common.errors import UserError

FIRST = 60.0  # seconds that it waits for its first message; each says how long to wait for the next
PATIENCE = 10.0  # seconds that somebody who connected may keep others waiting


def admit(keeper: Keeper, connection: socket.socket) -> None:
    """Serve whoever connected; what does not speak like a ClientApp is sent away."""
    connection.settimeout(PATIENCE)
    try:
        request = frames.read_json(frames.receive(connection, frames.REQUEST)[1])
        if (request["bundle"], request["parent"]) != (str(BUNDLE), keeper.parent):
            keeper.leave()
            frames.send(connection, frames.OTHER)
            return
        kind, node, keeper.idle = str(request["kind"]), dict(request["node"]), float(request["idle"])
        frames.send(connection, frames.STARTED)
        _work(connection, kind, node)
    except (EOFError, OSError, KeyError, TypeError, ValueError) as error:
        log(WARNING, "the worker sent somebody away: %s: %s", type(error).__name__, error)


def _work(connection: socket.socket, kind: str, node: dict[str, Any]) -> None:
    content = frames.receive_record(connection)
    started = time.perf_counter()
    connection.settimeout(None)
    try:
        with _ending_with(connection), logs.of_message(content, node):
            reply = answer(kind, content, node)
    except Exception as error:
        log(ERROR, "the worker could not answer", exc_info=error)
        fields = {"user": isinstance(error, UserError), "type": type(error).__name__, "text": str(error)}
        frames.send_json(connection, frames.FAILED, fields)
        return
    frames.send_json(connection, frames.DONE, {"seconds": time.perf_counter() - started})
    frames.send_record(connection, reply)
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # others may use the device until the next message


@contextmanager
def _ending_with(connection: socket.socket) -> Iterator[None]:
    """End this process at once if the other side goes away inside: nobody wants what it works on any more."""
    done, told = socket.socketpair()

    def watch() -> None:
        if told not in select([connection, told], [], [])[0]:
            os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.close()
        watcher.join()
        told.close()


def main() -> None:
    """Serve; arguments: the process to stay beside, the socket's descriptor and path."""
    parent, descriptor, path = sys.argv[1:]
    keeper = Keeper.of(descriptor, path, int(parent), FIRST)
    log(INFO, "worker %d: ready, app %s", os.getpid(), BUNDLE.name)
    keeper.serve(lambda connection: admit(keeper, connection))


if __name__ == "__main__":
    main()

"""A node's worker: a process that stays beside the SuperNode, with torch imported, networks built and images decoded.

It works on one message after another; `dispatch` asks it. It leaves when no message comes for a while, when the process
beside which it stays ends, or when an app of another version asks. It ends at once when the ClientApp whose message it
works on is killed, as that process would have, had it done the work itself.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from logging import ERROR, INFO, WARNING
from select import select
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.supercore import log

from client.warm.dispatch import PACKAGES
from client.warm.frames import DONE, FAILED, OTHER, STARTED, Channel, encode
from client.warm.listener import PAUSE, Listener, alive
from client.warm.rounds import RoundStreams
from client.work import answer
from common import logs
from common.errors import UserError

FIRST = 60.0  # seconds that it waits for its first message; each message says how long to wait for the next
WORKING = "working on a %s message"
PATIENCE = 10.0  # seconds for which a silent client may keep others waiting


def handle(listener: Listener, connection: socket.socket, streams: RoundStreams) -> None:
    """Serve one connection; connections that do not follow the protocol are rejected."""
    with Channel(connection, PATIENCE) as channel:
        try:
            request = channel.receive_json()
            if (request["packages"], request["parent"]) != (str(PACKAGES), listener.parent):
                listener.leave()
                channel.send_json({"answer": OTHER})
                return
            kind, node, listener.idle = str(request["kind"]), dict(request["node"]), float(request["idle"])
            channel.send_json({"answer": STARTED})
            _work(channel, kind, node, streams)
        except (EOFError, OSError, KeyError, TypeError, ValueError) as error:
            log(WARNING, "the worker rejected a connection: %s: %s", type(error).__name__, error)


def _work(channel: Channel, kind: str, node: dict[str, Any], streams: RoundStreams) -> None:
    content = channel.receive_record()
    streams.open(content, node)
    started = time.perf_counter()
    try:
        with _ending_with(channel), logs.of_message(content, node):
            log(INFO, WORKING, kind)
            reply = answer(kind, content, node)
    except Exception as error:
        log(ERROR, "the worker could not finish a message", exc_info=error)
        text = {"type": type(error).__name__, "text": str(error)}
        channel.send_json({"answer": FAILED, "user": isinstance(error, UserError), **text})
        return
    channel.send_json({"answer": DONE, "seconds": time.perf_counter() - started})
    channel.send_record(encode(reply))
    _release_device()


def _work_on_order(parent: int, kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
    """Answer an order that came by a stream; the process ends if the node's process ends meanwhile."""
    started, done = time.perf_counter(), threading.Event()

    def watch() -> None:
        while not done.wait(PAUSE):
            if not alive(parent):
                os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    try:
        with logs.of_message(content, node):
            log(INFO, WORKING, kind)
            reply = answer(kind, content, node)
            log(INFO, "%s: %.3f s of work (stream)", kind, time.perf_counter() - started)
            return reply
    finally:
        done.set()
        _release_device()


def _release_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # other processes may use the device until the next message


@contextmanager
def _ending_with(channel: Channel) -> Iterator[None]:
    """End this process at once if the other side ends inside the block: its work is no longer of use."""
    done, finished = socket.socketpair()

    def watch() -> None:
        if finished.fileno() not in select([channel.fileno(), finished.fileno()], [], [])[0]:
            os._exit(1)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.close()
        watcher.join()
        finished.close()


def main() -> None:
    """Serve; arguments: the process to stay beside, the socket's descriptor and path."""
    parent, descriptor, path = sys.argv[1:]
    listener = Listener.inherited(descriptor, path, int(parent), FIRST)
    log(INFO, "worker %d: ready, app %s", os.getpid(), PACKAGES.name)
    streams = RoundStreams(partial(_work_on_order, listener.parent))
    listener.serve(lambda connection: handle(listener, connection, streams), streams)


if __name__ == "__main__":
    main()

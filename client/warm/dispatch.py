"""How a node's ClientApp, a new process for every message, hands its work to a worker that stays beside the SuperNode.

Simulations and tests, whose processes stay anyway, do the work themselves.
"""

import hashlib
import os
import socket
import sys
import time
from collections.abc import Mapping
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import RecordDict
from flwr.supercore import log

from client.warm import frames
from client.warm.listener import Door
from common.errors import UserError

BUNDLE = Path(__file__).resolve().parents[2]  # the folder of the app's packages
IDLE_MINUTES = 10.0
TRIES = 3  # a worker may leave in the moment in which it is found
Reply = tuple[RecordDict, float]  # a reply's content and the seconds of work in it


class WorkerError(RuntimeError):
    """The worker could not finish a message."""


def respond(kind: str, content: RecordDict, node_id: int, node: Mapping[str, object]) -> RecordDict:
    """Return the content of the reply to a message: by the worker in a deployment, else by this process.

    The node configuration says with `worker` for how many idle minutes a worker stays; `worker=false` keeps none.
    """
    if Path(sys.argv[0]).name != "flwr-clientapp":
        return _here(kind, content, node)
    started, idle, reply = time.perf_counter(), idle_seconds(node), None
    if idle and "--allow-runtime-dependency-installation" not in sys.argv:  # those packages go when this process goes
        try:
            reply = ask(door(node_id), kind, content, node, idle)
        except OSError as error:
            log(WARNING, "no worker can be kept, this process does the work itself: %s", error)
    answer, seconds = reply or (_here(kind, content, node), time.perf_counter() - started)
    who = "worker" if reply else "own process"
    log(INFO, "%s answered in %.3f s, %.3f s of it work (%s)", kind, time.perf_counter() - started, seconds, who)
    return answer


def idle_seconds(node: Mapping[str, object]) -> float:
    """Return how long this node's worker stays without a message; 0: it keeps none."""
    wanted = node.get("worker", True)
    if isinstance(wanted, bool):
        return 60 * IDLE_MINUTES if wanted else 0.0
    try:
        return max(0.0, 60 * float(str(wanted)))
    except ValueError:
        raise UserError(f"node configuration worker={wanted!r}: give true, false or idle minutes") from None


def door(node_id: int) -> Door:
    """Return the door of this node's worker."""
    home = os.environ.get("FLWR_HOME") or str(Path.home() / ".flwr")
    return Door.named(hashlib.sha256(f"{Path(home).absolute()}\n{node_id}".encode()).hexdigest()[:16])


def ask(door: Door, kind: str, content: RecordDict, node: Mapping[str, object], idle: float) -> Reply | None:
    """Return the worker's reply, or None if no worker comes up.

    Raises what the worker raised (`UserError`, else `WorkerError`), and `WorkerError` when it ends in between.
    """
    bundle, parent = str(BUNDLE), _parent_process()
    request = {"bundle": bundle, "parent": parent, "kind": kind, "node": dict(node), "idle": idle}
    # -P: the folder in which the SuperNode was started may hold packages of the same names
    command = [sys.executable, "-P", "-m", "client.warm.worker", str(parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [bundle, os.environ.get("PYTHONPATH")]))}
    body = frames.encode(content)  # before the worker waits for it: its patience with whoever connects is short
    for _ in range(TRIES):
        with door.enter(command, env) as connection:
            try:
                frames.send_json(connection, frames.REQUEST, request)
                answer, _ = frames.receive(connection, frames.STARTED, frames.OTHER)
            except (EOFError, ConnectionError):
                continue  # it left, or could not start
            if answer == frames.STARTED:
                return _converse(connection, body)
    return None


def _converse(connection: socket.socket, body: bytes) -> Reply:
    try:
        frames.send(connection, frames.RECORD, body)
        answer, words = frames.receive(connection, frames.DONE, frames.FAILED)
        said = frames.read_json(words)
        if answer == frames.DONE:
            return frames.receive_record(connection), float(said["seconds"])
    except (EOFError, ConnectionError) as error:
        raise WorkerError("the node's worker process ended while it worked on this message") from error
    raise UserError(said["text"]) if said["user"] else WorkerError(f"{said['type']}: {said['text']}")


def _parent_process() -> int:
    """Return the process beside which the worker stays: the one that the SuperNode has start its ClientApps."""
    words = sys.argv
    return int(words[words.index("--parent-pid") + 1]) if "--parent-pid" in words else os.getppid()


def _here(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
    from client.work import answer  # imports torch, which takes seconds

    return answer(kind, content, node)

"""How a node's ClientApp, a new process for every message, hands its work to a worker that stays beside the SuperNode.

Simulations and tests, whose processes stay anyway, do the work themselves.
"""

import hashlib
import os
import sys
import time
from collections.abc import Mapping
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import RecordDict
from flwr.supercore import log

from client.warm.frames import DONE, FAILED, OTHER, STARTED, Channel, encode
from client.warm.listener import Address
from common.errors import UserError

PACKAGES = Path(__file__).resolve().parents[2]  # the folder of the app's packages
IDLE_MINUTES = 10.0
TRIES = 3  # a worker may leave at the moment at which it is found
Reply = tuple[RecordDict, float]  # a reply's content and the seconds of work in it


class WorkerError(RuntimeError):
    """The worker could not finish a message."""


def respond(kind: str, content: RecordDict, node_id: int, node: Mapping[str, object]) -> RecordDict:
    """Return the content of the reply to a message: from the worker in a deployment, else from this process.

    In the node configuration, `worker` gives the idle minutes for which a worker stays; `worker=false` keeps none.
    """
    if Path(sys.argv[0]).name != "flwr-clientapp":
        return _here(kind, content, node)
    started, idle, reply = time.perf_counter(), idle_seconds(node), None
    if idle and "--allow-runtime-dependency-installation" not in sys.argv:  # those packages go when this process goes
        try:
            reply = ask(worker_address(node_id), kind, content, node, idle)
        except OSError as error:
            log(WARNING, "no worker can be started, so this process does the work itself: %s", error)
    answer, seconds = reply or (_here(kind, content, node), time.perf_counter() - started)
    process = "worker" if reply else "own process"
    log(INFO, "%s answered in %.3f s, %.3f s of it work (%s)", kind, time.perf_counter() - started, seconds, process)
    return answer


def idle_seconds(node: Mapping[str, object]) -> float:
    """Return how long this node's worker stays without a message; 0: the node keeps no worker."""
    wanted = node.get("worker", True)
    if isinstance(wanted, bool):
        return 60 * IDLE_MINUTES if wanted else 0.0
    try:
        return max(0.0, 60 * float(str(wanted)))
    except ValueError:
        raise UserError(f"node configuration worker={wanted!r}: give true, false or idle minutes") from None


def worker_address(node_id: int) -> Address:
    """Return the address of this node's worker."""
    home = os.environ.get("FLWR_HOME") or str(Path.home() / ".flwr")
    node = hashlib.sha256(f"{Path(home).absolute()}\n{node_id}".encode()).hexdigest()[:16]
    return Address.named(f"worker-{node}")  # at the bare hash an older version, with other framing, may still listen


def ask(address: Address, kind: str, content: RecordDict, node: Mapping[str, object], idle: float) -> Reply | None:
    """Return the worker's reply, or None if no worker starts.

    Raises what the worker raised (`UserError`, else `WorkerError`), and `WorkerError` when it ends in between.
    """
    packages, parent = str(PACKAGES), _parent_process()
    request = {"packages": packages, "parent": parent, "kind": kind, "node": dict(node), "idle": idle}
    # -P: the folder in which the SuperNode was started may hold packages of the same names
    command = [sys.executable, "-P", "-m", "client.warm.worker", str(parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [packages, os.environ.get("PYTHONPATH")]))}
    body = encode(content)  # before connecting: a worker waits only a short time for a connected client
    for _ in range(TRIES):
        with Channel(address.connect(command, env)) as channel:
            try:
                channel.send_json(request)
                answer = channel.receive_answer(STARTED, OTHER)["answer"]
            except (EOFError, ConnectionError):
                continue  # it left, or could not start
            if answer == STARTED:
                return _converse(channel, body)
    return None


def _converse(channel: Channel, body: bytes) -> Reply:
    try:
        channel.send_record(body)
        fields = channel.receive_answer(DONE, FAILED)
        if fields["answer"] == DONE:
            return channel.receive_record(), float(fields["seconds"])
    except (EOFError, ConnectionError) as error:
        raise WorkerError("the node's worker process ended while it worked on this message") from error
    raise UserError(fields["text"]) if fields["user"] else WorkerError(f"{fields['type']}: {fields['text']}")


def _parent_process() -> int:
    """Return the process beside which the worker stays: the one that the SuperNode has start its ClientApps."""
    words = sys.argv
    return int(words[words.index("--parent-pid") + 1]) if "--parent-pid" in words else os.getppid()


def _here(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
    from client.work import answer  # imports torch, which takes seconds

    return answer(kind, content, node)

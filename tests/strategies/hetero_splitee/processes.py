"""A node in its own process, which a test can kill in the middle of a round."""

from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from common.flower.local_grid import LocalGrid
from tests.support.killing import PROCESSES

Parcel = tuple[str, dict[str, bytes]]  # a message's id and its objects


class ProcessGrid(LocalGrid):
    """A grid whose last node is a process. Its first message starts it; after a kill, the next message restarts it."""

    def __init__(self, app: ClientApp, node_configs: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(self._ask, node_configs, concurrent=True)  # type: ignore[arg-type]
        self.here, self.last = app, list(self.contexts)[-1]
        self.process: Any = None
        self._end: Connection

    def kill(self) -> None:
        """Kill (SIGKILL) the node."""
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _ask(self, message: Message, context: Context) -> Message:
        if context.node_id != self.last:
            return self.here(message, context)
        if self.process is None or not self.process.is_alive():
            self._end, theirs = PROCESSES.Pipe()
            self.process = PROCESSES.Process(target=_serve, args=(theirs, dict(context.node_config)), daemon=True)
            self.process.start()
            theirs.close()
        try:
            self._end.send(_pack(message))
            return _unpack(self._end.recv())
        except (EOFError, OSError):
            return Message(Error(code=2, reason="the node was killed"), reply_to=message)


def _serve(end: Connection, node_config: Mapping[str, Any]) -> None:
    torch.set_num_threads(1)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    context = Context(run_id=1, node_id=1, node_config=dict(node_config), state=RecordDict(), run_config={})
    while True:
        message = _unpack(end.recv())
        try:
            reply = app(message, context)
        except Exception as error:
            reply = Message(Error(code=2, reason=f"{type(error).__name__}: {error}"), reply_to=message)
        end.send(_pack(reply))


def _pack(message: Message) -> Parcel:
    object_id = message.object_id
    message.metadata.__dict__["_message_id"] = object_id
    return object_id, {key: value.deflate() for key, value in get_all_nested_objects(message).items()}


def _unpack(parcel: Parcel) -> Message:
    object_id, contents = parcel
    message = cast(Message, inflate_object_from_contents(object_id, contents))
    message.metadata.__dict__["_message_id"] = object_id
    return message

"""An in-process Flower grid: runs a ServerApp or a strategy against a ClientApp without Ray or a SuperLink.

Messages are serialised and rebuilt as in deployment. Node configurations are those of a simulation or of SuperNodes.
`--in-process` runs on it, and so do tests, notebooks and benchmarks. Messages run one after another unless
`concurrent` is set.
"""

import random
import threading
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

PAUSE = 0.01  # seconds between two looks for replies


class LocalGrid(Grid):
    """Nodes that live in this process."""

    def __init__(
        self,
        app: ClientApp,
        node_configs: Sequence[Mapping[str, Any]],
        run_config: Mapping[str, Any] | None = None,
        *,
        concurrent: bool = False,
    ) -> None:
        """With `concurrent` each message runs on its own thread, which clients that stream to one server need."""
        # a Message can be made only inside a Flower task, so this process becomes one
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        source = random.Random(0)
        self.app, self.concurrent = app, concurrent
        self.contexts: dict[int, Context] = {}
        for config in node_configs:
            node = source.getrandbits(63)
            self.contexts[node] = Context(
                run_id=1, node_id=node, node_config=dict(config), state=RecordDict(), run_config=dict(run_config or {})
            )
        self.replies: dict[str, Message] = {}

    def set_run(self, run: Any) -> None:
        """Nothing to set."""

    @property
    def run(self) -> Any:
        """Not available: this grid has no Flower run."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not available, since Flower deprecates it; build a `Message`."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return all nodes."""
        return list(self.contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Run each message's ClientApp, at once or on a thread; an exception becomes an error reply, as in Flower."""
        ids = []
        for message in messages:
            instruction = _over_the_wire(message)
            if self.concurrent:
                threading.Thread(target=self._run, args=(instruction,), daemon=True).start()
            else:
                self._run(instruction)
            ids.append(instruction.metadata.message_id)
        return ids

    def _run(self, instruction: Message) -> None:
        context = self.contexts[instruction.metadata.dst_node_id]
        try:
            reply = _over_the_wire(self.app(instruction, context))
        except Exception as error:
            reason = f"{type(error)}:<{error}>\n{traceback.format_exc()}"
            reply = Message(Error(code=2, reason=reason), reply_to=instruction)
        self.replies[instruction.metadata.message_id] = reply

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return each reply once."""
        return [self.replies.pop(m) for m in list(message_ids) if m in self.replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, wait for the replies, at most `timeout` seconds, and pull them."""
        ids, start = list(self.push_messages(messages)), time.monotonic()
        while not self.replies.keys() >= set(ids) and (timeout is None or time.monotonic() < start + timeout):
            time.sleep(PAUSE)
        return self.pull_messages(ids)


def _over_the_wire(message: Message) -> Message:
    """Serialise and rebuild, as the deployment runtime does."""
    object_id = message.object_id
    message.metadata.__dict__["_message_id"] = object_id
    contents = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
    rebuilt = cast(Message, inflate_object_from_contents(object_id, contents))
    rebuilt.metadata.__dict__["_message_id"] = object_id
    return rebuilt

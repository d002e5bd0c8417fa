"""A Flower grid that sends a node's messages by its stream where one is open, and by Flower's otherwise.

Every message that goes by Flower carries the announcement from which the node opens its stream. So a node that cannot
open one works as before, and one that comes back opens it again. Flower keeps membership, keys, control and status.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from common.config import RunConfig
from common.memory import available_memory
from common.messages.protocol import QUERY
from common.rpc.channels import Limits
from common.rpc.records import FRAME
from common.rpc.rounds import Announcement
from common.rpc.streams import served
from common.sections.stream import StreamSettings
from server.rounds.service import RoundsService

LOOK = 1.0  # seconds between two looks at nodes whose stream is broken
PATIENCE = 90.0  # seconds without a stream after which the node's replies are given up; Flower itself takes 60
NODES = 500  # that can open a stream, whatever the configuration says
SHARE = 0.25  # of the free memory, for replies that have come and were not taken yet
PROBE = 60.0  # seconds for which Flower keeps the message that makes a node open its stream again


class StreamGrid(Grid):
    """Flower's grid with streams beside it."""

    def __init__(self, grid: Grid, service: RoundsService, address: str, certificate: str, token: str) -> None:
        self.grid, self.service = grid, service
        self.address, self.certificate, self.token = address, certificate, token
        self._looked = 0.0

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self.grid.set_run(run)

    @property
    def run(self) -> Any:
        """Flower's run."""
        return self.grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Not available, since Flower deprecates it; build a `Message`."""
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes."""
        return self.grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send each message by its node's stream, or by Flower; returns their ids, empty where Flower refused one."""
        messages = list(messages)
        ids = [self.service.send(message) for message in messages]
        others = [message for message, message_id in zip(messages, ids, strict=True) if message_id is None]
        for message in others:
            self._announce(message)
        by_flower = iter(self.grid.push_messages(others)) if others else iter(())
        # Flower has no ids at all where the SuperLink finds the messages too large
        return [next(by_flower, "") if message_id is None else message_id for message_id in ids]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come, each once."""
        ids = set(message_ids)
        by_flower = {i for i in ids if not self.service.mine(i)}
        self._look_after_lost()
        replies = self.service.take(ids - by_flower)
        return [*replies, *(self.grid.pull_messages(by_flower) if by_flower else ())]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull until all replies are there or the time is over."""
        pending, end = {i for i in self.push_messages(messages) if i}, time.monotonic() + (timeout or float("inf"))
        replies: list[Message] = []
        while pending and time.monotonic() < end:
            came = list(self.pull_messages(pending))
            pending -= {reply.metadata.reply_to_message_id for reply in came}
            replies += came
            self.wait(LOOK / 10)
        return replies

    def wait(self, seconds: float) -> None:
        """Wait until a stream has brought a reply since the last look, at most for so long."""
        self.service.wait(seconds)

    def _announce(self, message: Message) -> None:
        node = message.metadata.dst_node_id
        Announcement(self.address, self.certificate, self.token, node, self.service.token(node)).attach(message.content)

    def _look_after_lost(self) -> None:
        """Ask nodes to open a broken stream again, and give up those that do not."""
        if time.monotonic() - self._looked < LOOK or not (lost := self.service.lost()):
            return
        self._looked, present = time.monotonic(), set(self.grid.get_node_ids())
        for node in lost:
            seconds = time.monotonic() - (node.lost or 0.0)
            if node.id not in present:
                self.service.give_up(node, f"the node is gone; its stream broke {seconds:.0f} s ago")
            elif seconds > PATIENCE:
                self.service.give_up(node, f"the node has not opened its stream again for {seconds:.0f} s")
            elif not node.probed:
                node.probed = True
                probe = Message(RecordDict(), dst_node_id=node.id, message_type=QUERY, ttl=PROBE)
                self._announce(probe)
                self.grid.push_messages([probe])


@contextmanager
def streaming(grid: Grid, config: RunConfig) -> Iterator[Grid]:
    """Serve the rounds' stream while this block lasts, unless `round.transport` is "messages".

    A simulation has none: its nodes live in processes that stay anyway. Raises `UserError` when the address cannot be
    used.
    """
    if config.round.transport == "messages" or not _deployed(grid):
        yield grid
        return
    with serving(grid, config) as rounds:
        yield rounds


@contextmanager
def serving(grid: Grid, config: RunConfig) -> Iterator[StreamGrid]:
    """Serve the rounds' stream while this block lasts; raises what `serve` does."""
    section, limits = config.of(StreamSettings), Limits(FRAME, calls=_calls(config))
    service = RoundsService(section.memory * 1e6 or available_memory() * SHARE)
    with served(service.register, section, section.rounds_port, limits, "rounds") as stream:
        try:
            yield StreamGrid(grid, service, *stream)
        finally:
            service.end()


def _deployed(grid: Grid) -> bool:
    """Return whether this is Flower's grid of a deployment, whose module imports a database that others do not need."""
    module = sys.modules.get("flwr.superlink.grid.http_grid")
    return module is not None and isinstance(grid, module.HttpGrid)


def _calls(config: RunConfig) -> int:
    """Return how many streams may be open: two per node, since one may be broken.

    Real devices count themselves, so clients.count may be far too low; a call has a thread only once it is made.
    """
    return 2 * max(config.clients.count, config.round.min_nodes, NODES) + 16

"""Where clients' states are in a simulation on several machines, see `clients.state`.

Flower hands a message to any idle worker of a cluster, so a client cannot stay on the machine that has its state.
"""

import secrets
from collections.abc import Iterable, Mapping
from functools import cached_property

import numpy as np

from common import paths
from common.config import RunConfig
from common.errors import UserError
from common.messages.protocol import CLIENT_STATE, ClientArrays, Reply, Task
from common.storage.client_store import ClientStore


class States:
    """The clients' states as the server sees them: on the nodes, in a shared folder, or in its own store."""

    def __init__(self, config: RunConfig) -> None:
        """Raises `UserError` where late answers are wanted, whose states would be lost."""
        self.travel = config.clients.state == "server"
        self._shared: ClientStore | None = None
        root, run = paths.store_root(config.clients.store), config.run.name
        if self.travel:
            if config.round.staleness:
                raise UserError(
                    f"round.staleness is {config.round.staleness:g}, but with clients.state=server late answers cannot "
                    "bring their states: set round.staleness to 0, or clients.store to a folder that all machines share"
                )
            self.store = ClientStore(root, f"{run}.states" if run else "states")
        elif config.clients.state == "shared":
            self._shared = ClientStore(root, run)

    @cached_property
    def token(self) -> str:
        """The shared folder's token, "" without one; the first message's order writes it, once the run has its name.

        Raises `StorageError`.
        """
        if self._shared is None:
            return ""
        token = secrets.token_hex(8)
        self._shared.mark(token)
        return token

    def sent(self, tasks: Iterable[Task], arrays: ClientArrays) -> ClientArrays:
        """Return the arrays of a message with, for each of its clients, the committed state that the server holds."""
        if not self.travel:
            return arrays
        merged: dict[int, Mapping[str, np.ndarray]] = dict(arrays)
        for task in tasks:
            if task.version:
                state = np.frombuffer(self.store.read(task.client, task.version), dtype=np.uint8)
                merged[task.client] = {**arrays.get(task.client, {}), CLIENT_STATE: state}
        return merged

    def take(self, reply: Reply, clients: Iterable[int], round_: int, committed: Mapping[int, int]) -> None:
        """Store the states of a round that these clients send; they count once the round is committed."""
        for client in clients:
            arrays = reply.client_arrays.get(client, {})
            if self.travel and CLIENT_STATE in arrays:
                self.store.write(client, round_, arrays.pop(CLIENT_STATE).tobytes())
                self.store.prune(client, {round_, committed.get(client, 0)})
            if not arrays:
                reply.client_arrays.pop(client, None)

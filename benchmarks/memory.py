"""What a server holds while the replies of a round arrive: one model per tier, however many clients answer.

DarkDistill with one client per node, as in deployment: every reply brings a whole model. Replies are made on the
server's side when it polls for them (the model it sent plus noise), one at a time, so no client's memory counts. Run
`python -m benchmarks.memory`; every number of clients runs in a process of its own.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from flwr.app import Message, RecordDict

from benchmarks.common import save
from benchmarks.process_memory import memory
from client.app import app
from common.flower.local_grid import LocalGrid
from common.messages import protocol
from common.messages.protocol import ClientReport, ClientResult, NodeReport, Reply
from common.weights.flat import FlatState, Layout
from strategies.configuration import read_config
from strategies.darkdistill.client import DIFFICULTY, LABELS
from strategies.engine.strategy import EarlyExitStrategy
from strategies.factory import make_strategy

CLIENTS = (10, 100, 1000)
SAMPLES = 50  # per client
SETTINGS: dict[str, Any] = {
    "run.name": "memory", "run.strategy": "darkdistill", "run.rounds": 1, "network.name": "lenet", "network.width": 55,
    "clients.mix": "1,1,1", "server.evaluate-every": 0, "darkdistill.server-epochs": 1, "darkdistill.distill-steps": 1,
}  # fmt: skip
MB = 2**20


class Replies(LocalGrid):
    """A node per client that replies without training; samples the server's memory between two replies."""

    def __init__(self, clients: int, strategy: EarlyExitStrategy) -> None:
        super().__init__(app, [{}] * clients)
        self.client_of = {node: client for client, node in enumerate(self.contexts)}
        self.layouts: dict[int, Layout] = strategy.layouts
        self.pending: dict[str, Message] = {}
        self.held: list[int] = []  # bytes of tensors after the first, second, ... sampled reply
        self.every = max(1, clients // 10)
        self.bytes_up = 0
        self.rng = torch.Generator().manual_seed(0)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Keep the messages, which share the arrays of their tier."""
        ids = []
        for message in messages:
            number = f"{message.metadata.message_type}-{message.metadata.dst_node_id}-{message.metadata.group_id}"
            message.metadata.__dict__["_message_id"] = number
            self.pending[number] = message
            ids.append(number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the reply to one message."""
        number = min(message_ids)
        message = self.pending.pop(number)
        kind = message.metadata.message_type
        if kind == protocol.TRAIN and len(self.pending) % self.every == 0:
            self.held.append(tensor_bytes())
        client = self.client_of[message.metadata.dst_node_id]
        content = self._report(client) if kind == protocol.QUERY else self._train(message)
        reply = Message(content, reply_to=message)
        self.bytes_up += protocol.message_bytes(reply)
        return [reply]

    def _report(self, client: int) -> RecordDict:
        depth = 1 + client % len(self.layouts)
        return protocol.pack_report(NodeReport(0, False, (ClientReport(client, depth, "made up", SAMPLES),)))

    def _train(self, message: Message) -> RecordDict:
        order, payload = protocol.unpack_order(message.content)
        (task,) = order.tasks
        layout, given = self.layouts[task.part], payload.states[task.arrays].state_dict()
        state = FlatState.of({key: given[key] for key, _ in layout.floats + layout.counters})
        state.floats += 0.01 * torch.randn(state.floats.shape, generator=self.rng)
        reply = Reply([ClientResult(task.client, task.part, SAMPLES)], lone={task.client: state})
        difficulty = torch.rand(SAMPLES, generator=self.rng).numpy()
        reply.client_arrays[task.client] = {DIFFICULTY: difficulty, LABELS: np.arange(SAMPLES, dtype=np.int64) % 10}
        return protocol.pack_reply(reply)


def tensor_bytes() -> int:
    """Return the bytes of all live tensors of this process; shared storage counts once."""
    storages = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # reading every object's attributes warns of deprecated ones
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor):
                storage = thing.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measure(clients: int) -> dict[str, Any]:
    """Run one round with this many clients; return memory in MiB."""
    strategy = make_strategy(read_config({**SETTINGS, "clients.count": clients, "clients.per-round": clients}))
    strategy._deliver = lambda grid: None  # type: ignore[method-assign]
    grid = Replies(clients, strategy)
    model = sum(value.nbytes for value in strategy.model.values())
    before, resident = tensor_bytes(), memory("VmHWM")
    strategy.start(grid)
    return {
        "clients": clients,
        "model": model / MB,
        "uploaded": grid.bytes_up / MB,
        "tensors_before": before / MB,
        "tensors_between_replies": max(grid.held) / MB,
        "tensors_after": tensor_bytes() / MB,
        "peak_resident_before": resident / MB,
        "peak_resident": memory("VmHWM") / MB,
    }


def main() -> None:
    """Measure every number of clients in a process of its own and save the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, help="measure this number in this process")
    options = parser.parse_args()
    if options.clients:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.clients)))
        return
    rows = []
    for clients in CLIENTS:
        with tempfile.TemporaryDirectory() as home:
            env = os.environ | {"FLWR_HOME": f"{home}/.flwr", "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "benchmarks.memory", "--clients", str(clients)]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{clients} clients failed:\n{done.stderr[-2000:]}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    print(save("memory", {"unit": "MiB", "rounds": rows}))


if __name__ == "__main__":
    main()

"""The server's training thread of a round: it takes batches from the inbox in a fixed order.

The order is that of `schedule.py`, whichever client sends faster. A client that does not send its next batch
in time is skipped for the rest of the round, so a stopped client delays the round only once. The thread ends when every
client has ended or is skipped.
"""

import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from logging import WARNING
from threading import Thread
from typing import Any

import torch
from flwr.supercore import log

from common.devices import threads
from common.seeding import derive_seed, seed_global
from strategies.hetero_splitee.inbox import Batch, Closed, Inbox, Missing
from strategies.hetero_splitee.schedule import turns
from strategies.hetero_splitee.server_model import ServerModel


@dataclass
class Trained:
    """The result of a round's training."""

    batches: dict[int, int] = field(default_factory=dict)  # by client
    samples: dict[int, int] = field(default_factory=dict)  # by client; with two epochs every sample counts twice
    missing: dict[int, int] = field(default_factory=dict)  # by client: expected batches that did not arrive
    loss: float = 0.0  # summed over batches
    seconds: float = 0.0  # in training steps, without waiting
    error: BaseException | None = None


class Trainer:
    """Trains a server model on a round's inbox."""

    def __init__(
        self, model: ServerModel, inbox: Inbox, per_epoch: Mapping[int, int], epochs: int, granularity: str,
        *, together: bool, patience: float, num_threads: int, seed: int, device: torch.device,
        turn: AbstractContextManager[Any] | None = None,
    ) -> None:  # fmt: skip
        """Batches of each client in the order of a turn; `together`: step a turn at once, for a copy per client.

        `turn` is held during a step, for a model that answers features meanwhile.
        """
        self.seed, self.device, self.turn = seed, device, turn or nullcontext()
        self.model, self.inbox, self.together, self.patience = model, inbox, together, patience
        self.turns = turns(per_epoch, epochs, granularity)
        self.num_threads = num_threads
        self.result = Trained(dict.fromkeys(sorted(per_epoch), 0), dict.fromkeys(sorted(per_epoch), 0))
        self.result.missing = {client: epochs * number for client, number in sorted(per_epoch.items())}
        self.skipped: set[int] = set()
        self.thread = Thread(target=self._run, name="split-trainer", daemon=True)

    def start(self) -> "Trainer":
        """Start the thread; return the trainer."""
        self.thread.start()
        return self

    def finish(self) -> Trained:
        """Wait until all batches that arrived are trained on; raises the error of the training thread."""
        self.thread.join()
        if self.result.error:
            raise self.result.error
        return self.result

    def stop(self) -> None:
        """Abort the round."""
        self.inbox.close()
        self.thread.join()

    def _run(self) -> None:
        try:
            with threads(self.num_threads):
                for clients in self.turns:
                    self._turn([client for client in clients if client not in self.skipped])
                for client in self.result.batches:  # a device's data may have grown since it announced their number
                    while client not in self.skipped:
                        self._turn([client])
        except Closed:
            pass
        except BaseException as error:  # raised again by the thread that waits for the round
            self.result.error = error
            self.inbox.close()

    def _turn(self, clients: list[int]) -> None:
        for group in [clients] if self.together else [[client] for client in clients]:
            if taken := self._take(group):
                self._step(taken)

    def _take(self, clients: list[int]) -> dict[int, Batch]:
        taken: dict[int, Batch] = {}
        for client in clients:
            batch = self.inbox.take(client, self.result.batches[client], self.patience)
            if isinstance(batch, Batch):
                taken[client] = batch
                self.result.missing[client] = max(0, self.result.missing[client] - 1)
            else:
                if batch is Missing.ENDED:
                    self.result.missing[client] = 0
                self.skipped.add(client)
        return taken

    def _step(self, taken: Mapping[int, Batch]) -> None:
        started, first = time.perf_counter(), min(taken)
        seed_global(self.device, derive_seed(self.seed, "server dropout", self.inbox.opened.round, first,
                                             taken[first].index))  # fmt: skip
        with self.turn, torch.enable_grad():
            results = self.model.step_many({c: (batch.features, batch.labels) for c, batch in taken.items()})
        for client, step in results.items():
            if not math.isfinite(loss := float(step.loss)):
                reason = f"the server's loss on batch {taken[client].index} is not finite: lower splitee.server-lr"
                log(WARNING, "round %d: client %d: %s; the server goes on without it",
                    self.inbox.opened.round, client, reason)  # fmt: skip
                self.inbox.abandon(client, reason)
                self.skipped.add(client)
                self.result.samples[client] = 0  # its copy and its running statistics do not count
                continue
            self.result.batches[client] += 1
            self.result.samples[client] += len(taken[client].labels)
            self.result.loss += loss
            if self.inbox.opened.gradients:
                self.inbox.reply(client, taken[client].index, None if step.gradient is None else step.gradient.cpu())
        self.result.seconds += time.perf_counter() - started

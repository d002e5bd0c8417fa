"""Each client's own classes, added to the logits: logit adjustment (Menon et al., ICLR 2021) for unlike clients.

A network that unlike clients share learns class frequencies that none of them has. With the logarithm of a client's own
frequencies added to the logits in training, it need not learn any: it learns what tells the classes apart, the same for
all. Answers to a client have the client's own frequencies added again.

A device counts its training labels. The server counts those that a client streams, divided by the round's epochs, in
each of which every sample comes once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.weights.flat import StateDict

LABELS = "labels."  # in a stored state, before "clients" (N,), their ids, and "counts" (N, classes)


def log_prior(counts: Tensor) -> Tensor:
    """Return the logarithms (classes,) of the frequencies in label counts (classes,).

    Every class counts once more than it was seen, so that none is impossible.
    """
    return ((counts + 1.0) / (counts.sum() + len(counts))).log()


def adjusted(logits: Tensor, prior: Tensor | None) -> Tensor:
    """Return logits (B, classes) with a prior (classes,) added, if there is one."""
    return logits if prior is None else logits + prior.to(logits.device)


@dataclass
class LabelCounts:
    """The server's counts of the labels that each client has streamed; they are on the CPU."""

    classes: int = 0  # 0: nothing is counted, and no client has a prior
    clients: dict[int, Tensor] = field(default_factory=dict)  # (classes,) int64, of the last round that each finished
    streamed: dict[int, Tensor] = field(default_factory=dict)  # likewise, of all epochs of the open round so far
    epochs: int = 1  # of the open round

    def open_round(self, epochs: int = 1) -> None:
        """Begin to count anew, in a round of so many epochs."""
        self.streamed, self.epochs = {}, epochs

    def count(self, client: int, labels: Tensor) -> Tensor | None:
        """Count a batch's labels (B,) and return the prior to train on it with.

        It is that of the client's last finished round; before there is one, that of what has come so far. So a prior
        never weighs more samples than the client has.
        """
        if not self.classes:
            return None
        seen = torch.bincount(labels.cpu(), minlength=self.classes)
        self.streamed[client] = self.streamed[client] + seen if client in self.streamed else seen
        return log_prior(self.clients.get(client, self.streamed[client] / self.epochs))

    def close_round(self, finished: Collection[int]) -> None:
        """Keep the counts of the clients that finished; those of the others are dropped."""
        counts = self.streamed.items()
        self.clients |= {client: seen // self.epochs for client, seen in counts if client in finished}
        self.streamed = {}

    def prior(self, client: int) -> Tensor | None:
        """Return what answers to a client are adjusted by; None for one that has finished no round."""
        return log_prior(self.clients[client]) if client in self.clients else None

    def nbytes(self) -> int:
        """Return the bytes of all counts."""
        return sum(counts.nbytes for counts in (*self.clients.values(), *self.streamed.values()))

    def beside(self, state: StateDict) -> StateDict:
        """Return a state with the finished counts beside its keys; `counts_of` reads them."""
        if not self.clients:
            return state
        clients = sorted(self.clients)
        counts = torch.stack([self.clients[client] for client in clients])
        return state | {f"{LABELS}clients": torch.tensor(clients), f"{LABELS}counts": counts}


def counts_of(state: Mapping[str, Tensor], classes: int) -> LabelCounts:
    """Return the counts that `LabelCounts.beside` put into a state; raises `ValueError` if they are malformed."""
    found = LabelCounts(classes)
    if (clients := state.get(f"{LABELS}clients")) is None:
        return found
    counts = state.get(f"{LABELS}counts")
    if counts is None or counts.shape != (len(clients), classes):
        raise ValueError(f"the label counts are not those of {len(clients)} clients and {classes} classes")
    found.clients = {client: counts[row].clone() for row, client in enumerate(clients.tolist())}
    return found

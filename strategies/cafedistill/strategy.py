"""CAFEDistill (Liu et al., arXiv 2601.10015): personalised early-exit networks by cross-client distillation.

A round:

1. Sample clients; unlock students, shallow exits first, for clients that are alike.
2. Send the backbone and each client its aggregated last head; clients train (`client.py`).
3. Average the backbones, weighted by samples. Heads and BatchNorm's statistics stay personal.
4. Compare the clients by what the round changed in their last heads.
5. Give every client the mean of all uploaded last heads, weighted by its own teacher weights: many teachers, one
   head's traffic. (The mean of linear heads is the mean of their logits, not of their probabilities.)

Only clients that were sampled at least once cost the server anything: a head each, and a number per pair that met.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from logging import WARNING
from typing import Any

import numpy as np
import torch
from flwr.supercore import log
from torch import Tensor

from common.messages.protocol import ClientArrays, ClientReport
from common.seeding import generator
from common.weights.flat import Layout, StateDict
from common.weights.folding import MAGNITUDE
from strategies.cafedistill.client import HEAD, SHARES, STUDENTS, TEACHER
from strategies.cafedistill.features import warning
from strategies.cafedistill.heads import head_bias, head_layout, head_state, head_vector
from strategies.cafedistill.matching import teacher_weights
from strategies.cafedistill.schedule import mean_conflict, quota, select
from strategies.cafedistill.settings import CAFEDistillSettings
from strategies.cafedistill.similarity import LastHead, Similarities
from strategies.engine.strategy import EarlyExitStrategy
from strategies.method import Effort, Method, RoundUpdate, Setup


@dataclass
class Personal:
    """What the server keeps of a client that was sampled."""

    depth: int
    head: Tensor  # (P,) float32, the aggregated last head
    teachers: dict[int, tuple[float, Tensor]] = field(default_factory=dict)  # depth -> (share, head), shallower ones


class CAFEDistill(EarlyExitStrategy):
    """Average the backbone, match teachers, unlock students."""

    def __init__(self, method: Method, setup: Setup) -> None:
        super().__init__(method, setup)
        self.settings = self.config.of(CAFEDistillSettings)
        positions = {depth: self.network.tier_positions[depth - 1] for depth in self.tiers}
        self.exits = {depth: self.network.exit_positions.index(p) + 1 for depth, p in positions.items()}
        self.heads: dict[int, Layout] = {d: head_layout(self.network, p) for d, p in positions.items()}
        self.first = {depth: head_vector(self.model, layout) for depth, layout in self.heads.items()}
        self.similarities = Similarities()
        self.students: dict[int, int] = {}  # client -> k, its unlocked students
        self.known: dict[int, Personal] = {}
        self.admitted = 0

    def prepare(self, round_: int, clients: Sequence[ClientReport]) -> None:
        """Unlock students among this round's clients."""
        possible = {c.client: self.exits[self.part(c)] - 1 for c in clients}
        conflict = 0.0
        if self.settings.conflict_penalty:
            conflict = mean_conflict(self.similarities.matrix(sorted(possible)))
        self.admitted = quota(round_ - 1, self.rounds, possible, conflict, self.settings.admitted_by)
        rng = generator(self.config.run.seed, "students", round_)
        self.students |= select(self.admitted, self.students, possible, self.similarities.matrix, rng)

    def client_values(self, client: ClientReport) -> Mapping[str, Any]:
        """Return how many of a client's exits learn, and how much it learns from clients of other depths."""
        known = self._known(client)
        shares = {str(depth): share for depth, (share, _) in known.teachers.items()} if known else {}
        return {STUDENTS: self.students.get(client.client, 0), SHARES: shares}

    def client_arrays(self, clients: Sequence[ClientReport]) -> ClientArrays:
        """Return the aggregated last head of every client that has trained before."""
        sent: dict[int, dict[str, np.ndarray]] = {}
        for client in clients:
            if known := self._known(client):
                teachers = {f"{TEACHER}{depth}": head.numpy() for depth, (_, head) in known.teachers.items()}
                sent[client.client] = {HEAD: known.head.numpy(), **teachers}
        return sent

    def client_array_bytes(self, client: ClientReport) -> int:
        """Return the size of a last head in float64: one of a wrong kind only leaves its client out of matching."""
        return 8 * self.heads[self.part(client)].sizes[0]

    def effort(self, client: ClientReport) -> Effort:
        """Count the last head as float32; the teacher is an exit of the same forward pass."""
        return replace(super().effort(client), up=4 * self.heads[self.part(client)].sizes[0])

    def merge(self, round_: int, update: RoundUpdate) -> Mapping[str, Any]:
        """Average the backbones, then match teachers among the clients that answered."""
        super().merge(round_, update)
        if found := warning(update.mean_metrics()):
            log(WARNING, "round %d: %s", round_, found)
        uploaded = {client: self._read(client, arrays) for client, arrays in update.client_arrays.items()}
        heads = {client: head for client, head in uploaded.items() if head is not None}
        depths = {client: self.part(self.asked[client]) for client in heads}
        self._compare(heads, depths)
        weights = {}
        for client in heads:
            group = [c for c in heads if depths[c] == depths[client] or self._teaches(depths[c], depths[client])]
            row = teacher_weights(self.similarities.matrix(group), self.settings.alpha)[group.index(client)]
            weights[client] = dict(zip(group, row.tolist(), strict=True))
        # all from the uploaded heads: no client's new head is another one's teacher in the same round
        self.known |= {client: _aggregate(client, weights[client], heads, depths) for client in heads}
        selves = [weights[client][client] for client in heads]
        return {
            "admitted": self.admitted,
            "self_weight": sum(selves) / len(selves) if selves else 0.0,
            "pairs": len(self.similarities),
        }

    def state_dict(self) -> tuple[StateDict, dict[str, Any]]:
        """Return similarities, unlocked students and the aggregated heads."""
        tensors = {f"similarity.{key}": value for key, value in self.similarities.state().items()}
        for client, known in self.known.items():
            tensors[f"head.{client}"] = known.head
            tensors |= {f"head.{client}.{depth}": head for depth, (_, head) in known.teachers.items()}
        clients = {
            str(client): {"depth": known.depth, "shares": {str(d): share for d, (share, _) in known.teachers.items()}}
            for client, known in self.known.items()
        }
        return tensors, {"students": {str(c): k for c, k in self.students.items()}, "clients": clients}

    def load_state_dict(self, tensors: StateDict, values: Mapping[str, Any]) -> None:
        """Take `state_dict`'s result back."""
        self.similarities.load({key: tensors[f"similarity.{key}"] for key in self.similarities.state()})
        self.students = {int(client): k for client, k in values["students"].items()}
        self.known = {
            int(client): Personal(
                known["depth"], tensors[f"head.{client}"],
                {int(d): (share, tensors[f"head.{client}.{d}"]) for d, share in known["shares"].items()},
            )
            for client, known in values["clients"].items()
        }  # fmt: skip

    def _known(self, client: ClientReport) -> Personal | None:
        known = self.known.get(client.client)
        return known if known and known.depth == self.part(client) else None  # a re-rated client starts anew

    def _teaches(self, teacher: int, student: int) -> bool:
        # a deeper client's last head stands on units that a shallower one does not have
        return self.settings.across_depths and teacher < student

    def _compare(self, heads: Mapping[int, Tensor], depths: Mapping[int, int]) -> None:
        compared = {}
        for client, after in heads.items():
            depth, vector = depths[client], after
            if self.settings.similarity == "updates":
                known = self.known.get(client)
                vector = (known.head if known and known.depth == depth else self.first[depth]) - after
            compared[client] = LastHead(depth, vector, head_bias(vector, self.heads[depth]))
        self.similarities.update(compared, across_depths=self.settings.across_depths)

    def _read(self, client: int, arrays: Mapping[str, np.ndarray]) -> Tensor | None:
        layout = self.heads[self.part(self.asked[client])]
        try:
            if HEAD not in arrays:
                raise ValueError("it sent none")
            head = head_vector(head_state(arrays[HEAD], layout), layout)
            if not (head.abs() < MAGNITUDE).all():  # false for NaN too
                raise ValueError("weights are not finite, or out of range")
        except ValueError as error:
            log(WARNING, "client %d: its last head cannot be used: %s", client, error)
            return None
        return head


def _aggregate(
    client: int, weights: Mapping[int, float], heads: Mapping[int, Tensor], depths: Mapping[int, int]
) -> Personal:
    """Return a client's new last head, the weighted mean over teachers of its depth, and those of other depths."""
    shares: dict[int, float] = {}
    sums: dict[int, Tensor] = {}
    for teacher, weight in weights.items():
        depth = depths[teacher]
        shares[depth] = shares.get(depth, 0.0) + weight
        sums[depth] = sums.get(depth, torch.zeros(())) + weight * heads[teacher].double()
    means = {depth: (sums[depth] / share).float() for depth, share in shares.items() if share > 0}
    own = depths[client]
    return Personal(own, means[own], {d: (shares[d], mean) for d, mean in sorted(means.items()) if d != own})

"""Batch norm's running statistics beside the server's weights: of each client, of each cut, or none of their own.

Steps use a batch's own statistics, so running ones never change weights; but they decide the answers in evaluation. The
features of unlike cuts, and of devices that train their layers themselves, have unlike statistics: the mean of all fits
none of them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from common.weights.flat import StateDict
from common.weights.layers import LayerMean

STATISTICS = "statistics."  # then the cut and the key: what the layers after this cut have beside the whole's
CLIENTS = "clients."  # then the cut and the key: the same of its clients, stacked; without a key: their ids
SERVER_HALF = "server_half"  # plain value of a stored model: it is the server's half, devices have the first units

How = Literal["own", "cut", "shared"]


@dataclass
class RunningStatistics:
    """The sets that a server has beside its weights; all values lie on the CPU and are never changed in place."""

    how: How = "cut"  # "own": a set for each client and, for new ones, each cut; "cut"; "shared": no set
    cuts: dict[int, StateDict] = field(default_factory=dict)  # by cut
    clients: dict[int, tuple[int, StateDict]] = field(default_factory=dict)  # by client: its cut and its set

    def of(self, client: int, cut: int) -> StateDict:
        """Return what a client has in the layers after a cut, by key: its own values, else its cut's; possibly nothing.

        After a change of its cut a client keeps its values in the layers that it had, and they may be more than these.
        """
        _, own = self.clients.get(client, (cut, {}))
        return self.cuts.get(cut, {}) | own

    def shallowest(self) -> StateDict:
        """Return each layer's statistics behind the shallowest cut that has some."""
        return {key: value for _, own in sorted(self.cuts.items(), reverse=True) for key, value in own.items()}

    def keep(self, client: int, cut: int, state: Mapping[str, torch.Tensor]) -> None:
        """Take a copy of a client's set, if clients have their own."""
        if self.how == "own":
            self.clients[client] = cut, {key: value.detach().cpu().clone() for key, value in state.items()}

    def average(self, sets: Iterable[tuple[int, float, Mapping[str, torch.Tensor]]]) -> None:
        """Set each cut's statistics to the mean of sets (cut, weight, values by key), unless all share one."""
        if self.how == "shared":
            return
        means: dict[int, LayerMean] = {}
        for cut, weight, values in sets:
            means.setdefault(cut, LayerMean()).add({key: v.detach().cpu() for key, v in values.items()}, weight)
        self.cuts |= {cut: mean.result() for cut, mean in sorted(means.items())}

    def nbytes(self) -> int:
        """Return the bytes of all sets."""
        sets = [*self.cuts.values(), *(own for _, own in self.clients.values())]
        return sum(value.nbytes for own in sets for value in own.values())

    def beside(self, state: StateDict) -> StateDict:
        """Return a state with all sets beside its keys; `statistics_of` reads them."""
        own = {f"{STATISTICS}{cut}.{key}": v.clone() for cut, values in self.cuts.items() for key, v in values.items()}
        state = state | own
        for cut in sorted({cut for cut, _ in self.clients.values()}):
            members = sorted(client for client, (at, _) in self.clients.items() if at == cut)
            state[f"{CLIENTS}{cut}"] = torch.tensor(members)
            for key in self.clients[members[0]][1]:
                state[f"{CLIENTS}{cut}.{key}"] = torch.stack([self.clients[client][1][key] for client in members])
        return state


def statistics_of(state: Mapping[str, torch.Tensor], how: How = "own") -> RunningStatistics:
    """Return the sets that `RunningStatistics.beside` put into a state; raises `ValueError` if they are malformed."""
    found = RunningStatistics(how)
    for key, value in state.items():
        if key.startswith(STATISTICS):
            cut, _, own = key.removeprefix(STATISTICS).partition(".")
            found.cuts.setdefault(int(cut), {})[own] = value
    for place, members in state.items():
        cut, _, own = place.removeprefix(CLIENTS).partition(".")
        if not place.startswith(CLIENTS) or own:
            continue
        stacked = {key.removeprefix(f"{place}."): v for key, v in state.items() if key.startswith(f"{place}.")}
        if any(len(rows) != len(members) for rows in stacked.values()):
            raise ValueError(f"the statistics of cut {cut} are not those of {len(members)} clients")
        for row, client in enumerate(members.tolist()):
            found.clients[client] = int(cut), {key: rows[row].clone() for key, rows in stacked.items()}
    return found

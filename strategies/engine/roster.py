"""The clients that can take part: discovery of nodes, declared parts, stratified sampling, dealing to nodes.

A node is a process on a machine, a client a data owner. A node either has clients of its own, which stay at home, or
roams: it may host any virtual client of a simulation.
"""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from logging import INFO, WARNING

import torch
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore import log

from common.errors import UserError
from common.messages import protocol
from common.messages.protocol import ClientReport, NodeReport, Order
from common.seeding import derive_seed
from strategies.engine.messaging import exchange

PAUSE = 0.2  # seconds between two looks for nodes
NOTICE = 60.0  # seconds for which Flower keeps a notice for its node
SHOWN = 5  # refused clients that a message names
SIGN = 10.0  # seconds in which a live node answers a query: SuperNodes look for messages every 3 s
AGAIN = 30.0  # seconds for a query's answer of a node that has left one unanswered before


def note(name: str, reason: str) -> None:
    """Log that "client 3" or "node 7" takes no part, and why."""
    log(WARNING, "%s is left out: %s", name, reason)


@dataclass
class Roster:
    """The connected nodes and the clients that they host."""

    count: int  # virtual clients that roaming nodes may host
    reports: dict[int, ClientReport] = field(default_factory=dict)  # by client; part of the checkpoint
    homes: dict[int, int] = field(default_factory=dict)  # client -> node, for clients that stay at home
    nodes: dict[int, NodeReport] = field(default_factory=dict)  # by node id, in the order in which they came
    rivals: dict[int, int] = field(default_factory=dict)  # client -> the last node that claimed another's
    word: str = "depth"  # what a client chooses
    offered: Collection[int] = ()  # what it can choose from; empty: anything
    leave_out: Callable[[str, str], None] = note  # called with the name and the reason of what takes no part
    silent: set[int] = field(default_factory=set)  # nodes that left their last query unanswered
    notices: dict[int, list[str]] = field(default_factory=dict)  # by node: what the server refused, until it is sent

    def discover(
        self, grid: Grid, order: Order, min_nodes: int, wait: float, deadline: float, *, later: int = 1
    ) -> None:
        """Query nodes that are new; forget nodes that left. Raises `TimeoutError` when too few nodes can take part.

        `min_nodes` must be there the first time, and `later` once there were some; the round's quorum decides then.
        A listed node need not be alive: Flower lists a node for a minute after it died, and a node that was receiving a
        message when its sender was killed does not react for as long. Both count once they answer. A node that was
        silent once, such as one whose app hangs, is waited for no longer than `AGAIN`.
        """
        end, failed = time.monotonic() + wait, set[int]()
        needed, rule = min_nodes, f"round.min-nodes asks for {min_nodes}"
        if self.nodes:
            needed, rule = later, f"a round needs {later}"
        while True:
            present = self._wait(grid, needed, end, f"nodes after {wait:.0f} s, {rule}")
            self.nodes = {node: report for node, report in self.nodes.items() if node in present}
            self.silent &= set(present)  # one that comes back has been started again
            new = [node for node in present if node not in self.nodes and node not in failed]
            shares = self._shared_out(order, new)
            again = [share for share in shares if share[0] in self.silent]
            fresh = [share for share in shares if share not in again]
            answers = self._query(grid, fresh, deadline) + self._query(grid, again, min(deadline, AGAIN))
            for node, report in answers:
                if report is None:
                    failed.add(node)
                    continue
                self.nodes[node] = report
                self._accept(report.clients, node)
            self._settle(grid, order, min(deadline, SIGN))
            self._notify(grid, order)
            count = self._taking_part()
            asked = len(self.nodes) + len(failed.intersection(present))
            if count >= needed or (not count and asked >= needed):  # without any, the round says why
                break
            if time.monotonic() > end:
                missing = f"{count} nodes can take part after {wait:.0f} s, {rule}"
                raise TimeoutError(missing + self.reasons())
            time.sleep(PAUSE)
        self._describe(grid, order, deadline)

    def available(self) -> list[ClientReport]:
        """Return the clients that can be reached and take part, by id."""
        roaming = any(report.roaming for report in self.nodes.values())
        there = set(self.homes) | (set(range(self.count)) if roaming else set())
        return [self.reports[c] for c in sorted(there) if c in self.reports and not self.reports[c].refused]

    def reasons(self) -> str:
        """Return why clients cannot take part, as the end of a message; "" if all can."""
        refused = [f"client {c}: {report.refused}" for c, report in sorted(self.reports.items()) if report.refused]
        more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        return "".join(f"; {reason}" for reason in refused[:SHOWN]) + more

    def update(self, reports: Iterable[ClientReport]) -> None:
        """Take in choices that clients changed."""
        self._accept(reports, changed=True)

    def deal(self, sampled: Sequence[ClientReport], cost: Mapping[int, float]) -> dict[int, list[ClientReport]]:
        """Return node -> clients: at home, or, expensive clients first, on the node with least work.

        A client whose node has gone, such as one whose late answer is due, is left out.
        """
        roaming = sorted((n for n, r in self.nodes.items() if r.roaming), key=lambda n: (self.nodes[n].partition, n))
        dealt: dict[int, list[ClientReport]] = {node: [] for node in self.nodes}
        load = dict.fromkeys(roaming, 0.0)
        for client in sorted(sampled, key=lambda c: (-cost[c.client], c.client)):
            node = self.homes.get(client.client)
            if node is None:
                if not roaming:
                    continue
                node = min(roaming, key=lambda n: (load[n], roaming.index(n)))
                load[node] += cost[client.client]
            dealt[node].append(client)
        return {node: clients for node, clients in dealt.items() if clients}

    def _settle(self, grid: Grid, order: Order, deadline: float) -> None:
        """Find the node of every client that stays at home: of several that claim it, the first that still answers.

        A node that was started again is another node for Flower, which lists the dead one for a minute more.
        """
        at_home = {node: report.clients for node, report in self.nodes.items() if not report.roaming}
        claims = [(c.client, node) for node, clients in at_home.items() for c in clients]
        last, first = dict(claims), dict(reversed(claims))
        holders = first | {client: node for client, node in self.homes.items() if node in self.nodes}
        contested = [c for c, node in sorted(holders.items()) if last[c] not in (node, self.rivals.get(c))]
        asked = [(node, order) for node in sorted({holders[client] for client in contested})]
        living = {node for node, report in self._query(grid, asked, deadline) if report is not None}
        for client in contested:
            self.rivals[client] = last[client]
            if holders[client] in living:
                reason = f"node {holders[client]} has this client and answers: give each device a client id of its own"
                self.leave_out(f"client {client} of node {last[client]}", reason)
                self.notices.setdefault(last[client], []).append(f"client {client}: {reason}")
            else:
                holders[client] = last[client]
        self.homes = holders

    def _describe(self, grid: Grid, order: Order, deadline: float) -> None:
        """Ask again about virtual clients whose node failed, or has clients of its own."""
        roaming = [node for node, report in self.nodes.items() if report.roaming]
        orders = [(node, share) for node, share in self._shared_out(order, roaming) if share.describe]
        for _, report in self._query(grid, orders, deadline):
            self._accept(report.clients if report else ())

    def _shared_out(self, order: Order, nodes: Sequence[int]) -> list[tuple[int, Order]]:
        """Return each node with a query about its share of the virtual clients that are unknown, if it roams."""
        unknown = [client for client in range(self.count) if client not in self.reports]
        return [
            (node, dataclasses.replace(order, describe=tuple(unknown[i :: len(nodes)]))) for i, node in enumerate(nodes)
        ]

    def _taking_part(self) -> int:
        """Return how many nodes host virtual clients, or a client of their own that takes part."""
        hosts = {node for c, node in self.homes.items() if c in self.reports and not self.reports[c].refused}
        return sum(report.roaming or node in hosts for node, report in self.nodes.items())

    def _notify(self, grid: Grid, order: Order) -> None:
        """Send each refused node the reason for its own log; no reply is awaited."""
        messages = [
            Message(
                content=protocol.pack_order(dataclasses.replace(order, notice="; ".join(reasons))), dst_node_id=node,
                message_type=protocol.QUERY, ttl=NOTICE,
            )
            for node, reasons in self.notices.items()
        ]  # fmt: skip
        self.notices = {}
        if messages:
            list(grid.push_messages(messages))

    def _accept(self, reports: Iterable[ClientReport], node: int | None = None, *, changed: bool = False) -> None:
        for received in reports:
            known = self.reports.get(received.client)
            if known and not known.refused and not changed:
                continue  # a resumed run keeps the choices of its checkpoint: probing is not reproducible
            report = received
            if not received.refused and self.offered and received.part not in self.offered:
                offers = ", ".join(map(str, self.offered))
                reason = f"{self.word} {received.part} is not offered, this run has {self.word} {offers}"
                report = dataclasses.replace(received, refused=reason)
                if node is not None:
                    self.notices.setdefault(node, []).append(f"client {received.client}: {reason}")
            self.reports[report.client] = report
            if report.refused:
                self.leave_out(f"client {report.client}", report.refused)
            elif self.homes or changed:
                log(INFO, "client %d chose %s %d: %s", report.client, self.word, report.part, report.reason)

    @staticmethod
    def _wait(grid: Grid, needed: int, end: float, problem: str) -> list[int]:
        while len(nodes := sorted(grid.get_node_ids())) < needed:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(nodes)} {problem}")
            time.sleep(PAUSE)
        return nodes

    def _query(
        self, grid: Grid, orders: Iterable[tuple[int, Order]], deadline: float
    ) -> list[tuple[int, NodeReport | None]]:
        """Return each answer with its node: None if the query failed, or the answer cannot be read.

        Of a node that is gone nothing is returned, as of one that is silent: with its key it may come back as it was.
        """
        messages = [
            Message(content=protocol.pack_order(order), dst_node_id=node, message_type=protocol.QUERY, ttl=deadline)
            for node, order in orders
        ]
        answers: list[tuple[int, NodeReport | None]] = []
        unanswered, silent = dict[str, Message](), list[int]()
        for reply in exchange(grid, messages, deadline, unanswered):
            node, report = reply.metadata.src_node_id, None
            if reply.has_error() and reply.error.code == ErrorCode.MESSAGE_UNAVAILABLE:  # its time is up
                silent.append(node)
                continue
            self.silent.discard(node)
            if reply.has_error():
                log(WARNING, "node %d did not answer the query: %s", node, reply.error.reason)
                if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                    continue
            else:
                try:
                    report = protocol.unpack_report(reply.content)
                except ValueError as error:
                    log(WARNING, "node %d: its answer to the query cannot be read: %s", node, error)
            if report and report.problem:
                if report.roaming:  # Flower gives its work to any machine, so no other node can stand in for it
                    raise UserError(report.problem)
                self.leave_out(f"node {node}", report.problem)
                report = None
            answers.append((node, report))
        for node in (*silent, *(message.metadata.dst_node_id for message in unanswered.values())):
            if node not in self.silent:
                log(WARNING, "node %d did not answer the query in %.0f s", node, deadline)
                self.silent.add(node)
        return answers


def sample(clients: Sequence[ClientReport], number: int, seed: int, round_: int) -> list[ClientReport]:
    """Return `number` clients, stratified over the tiers that have clients: every tier in proportion, at least one.

    With fewer places than tiers, all clients have the same chance: fixed shares would leave some tiers out forever.
    The same seed and round give the same clients, whatever happened before.
    """
    tiers: dict[int, list[ClientReport]] = {}
    stratified = number >= len({client.part for client in clients})
    for client in clients:
        tiers.setdefault(client.part if stratified else 0, []).append(client)
    quotas = stratify({part: len(members) for part, members in tiers.items()}, number)
    chosen: list[ClientReport] = []
    for part, quota in quotas.items():
        source = torch.Generator().manual_seed(derive_seed(seed, "sample", round_, part))
        order = torch.randperm(len(tiers[part]), generator=source).tolist()
        chosen += [tiers[part][i] for i in order[:quota]]
    return sorted(chosen, key=lambda c: c.client)


def stratify(sizes: Mapping[int, int], number: int) -> dict[int, int]:
    """Split `number` places, no fewer than strata, by largest remainder and at least one each."""
    total = sum(sizes.values())
    number = min(number, total)
    exact = {part: number * size / total for part, size in sorted(sizes.items())}
    quotas = {part: min(max(1, int(share)), sizes[part]) for part, share in exact.items()}
    while sum(quotas.values()) != number:
        surplus = sum(quotas.values()) > number
        open_ = [d for d in quotas if (quotas[d] > 1 if surplus else quotas[d] < sizes[d])]
        off = {d: quotas[d] - exact[d] for d in open_}
        part = max(off, key=lambda d: (off[d], -d)) if surplus else min(off, key=lambda d: (off[d], d))
        quotas[part] += -1 if surplus else 1
    return quotas

"""From sampled clients to one message per node: each part's weights once, a task per client."""

from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Message

from common.messages import protocol
from common.messages.protocol import ClientReport, Order, Task
from common.weights.flat import FlatState, StateDict
from strategies.engine.roster import Roster
from strategies.engine.states import States
from strategies.method import ServerMethod


class Dispatcher:
    """Deals clients to nodes and packs the nodes' messages."""

    def __init__(self, strategy: ServerMethod, roster: Roster, states: States) -> None:
        self.strategy, self.roster, self.states = strategy, roster, states
        self.hosted: dict[int, tuple[int, ...]] = {}  # node -> clients of the messages that were packed last

    def messages(
        self, order: Order, clients: Sequence[ClientReport], kind: str, ttl: float, model: StateDict | None = None
    ) -> list[Message]:
        """Return a message of this kind for every node that hosts one of these clients; it lives `ttl` seconds.

        `model` is an earlier round's, from which the clients start; None: the global one.
        """
        strategy = self.strategy
        cost = {c.client: float(strategy.parts.macs(strategy.part(c)) * c.num_examples) for c in clients}
        dealt = self.roster.deal(clients, cost)
        self.hosted = {node: tuple(c.client for c in members) for node, members in dealt.items()}
        sent = self._sent_parts(dealt)
        packed = {part: protocol.pack_state(self._state(part, model)) for part in set(sent.values())}
        return [
            Message(
                content=self._content(order, members, packed, sent),
                dst_node_id=node, message_type=kind, ttl=ttl, group_id=str(order.round),
            )
            for node, members in dealt.items()
        ]  # fmt: skip

    def _state(self, part: int, model: StateDict | None) -> FlatState:
        if model is None:
            return self.strategy.part_state(part)
        return FlatState.of({key: model[key] for key in self.strategy.layouts[part].keys})

    def _sent_parts(self, dealt: dict[int, list[ClientReport]]) -> dict[int, int]:
        """Return, by client, the part whose weights its node is sent: of nested parts the largest serves all."""
        part = self.strategy.part
        if not self.strategy.method.nested:
            return {c.client: part(c) for members in dealt.values() for c in members}
        largest = {node: max(map(part, members)) for node, members in dealt.items()}
        return {c.client: largest[node] for node, members in dealt.items() for c in members}

    def _content(
        self,
        order: Order,
        members: Sequence[ClientReport],
        packed: dict[int, protocol.PackedState],
        sent: dict[int, int],
    ) -> protocol.RecordDict:
        strategy, nested = self.strategy, self.strategy.method.nested
        names = {
            part: protocol.MODEL if nested else f"part-{part}" for part in sorted({sent[c.client] for c in members})
        }
        tasks = tuple(
            Task(
                c.client, strategy.part(c), strategy.committed.get(c.client, 0), names[sent[c.client]],
                c.num_examples, strategy.client_values(c),
            ) for c in sorted(members, key=lambda c: c.client)
        )  # fmt: skip
        states = {name: packed[part] for part, name in names.items()} | dict(strategy.shared_states(members))
        arrays = self.states.sent(tasks, strategy.client_arrays(members))
        return protocol.pack_order(replace(order, tasks=tasks), states, arrays)

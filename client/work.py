"""The work on a message's content, the same in every process; importing this imports torch."""

from collections.abc import Mapping

from flwr.app import RecordDict

from common.messages import protocol
from common.rpc import rounds
from strategies.node import host

ACTIONS = {protocol.TRAIN: host.train, protocol.EVALUATE: host.evaluate, protocol.DELIVER: host.deliver}


def answer(kind: str, content: RecordDict, node: Mapping[str, object]) -> RecordDict:
    """Return the content of the reply to a message of this type; `node` is Flower's node configuration."""
    if set(content) == {rounds.RECORD}:
        return RecordDict()  # the message only announces a stream
    order, payload = protocol.unpack_order(content)
    if kind == protocol.QUERY:
        return protocol.pack_report(host.describe(order, node))
    return protocol.pack_reply(ACTIONS[kind](order, payload, node))

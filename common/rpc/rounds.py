"""Where a run's own stream of orders and replies is, as one of Flower's messages carries it to a node."""

import hashlib
import hmac
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

RECORD = "rounds"  # the record's name in a message


@dataclass(frozen=True)
class Announcement:
    """What a node needs to open its stream."""

    address: str  # `host:port` as nodes know it
    certificate: str  # PEM; empty: not encrypted
    token: str  # of the run
    node: int  # Flower's id of the node
    node_token: str  # proves that this node was asked

    def attach(self, content: RecordDict) -> None:
        """Add the announcement to a message."""
        content[RECORD] = ConfigRecord({**vars(self)})

    @classmethod
    def of(cls, content: RecordDict) -> "Announcement | None":
        """Return a message's announcement, None without a readable one."""
        record = content.get(RECORD)
        if not isinstance(record, ConfigRecord):
            return None
        texts = {name: record.get(name) for name in ("address", "certificate", "token", "node_token")}
        node = record.get("node")
        if not isinstance(node, int) or not all(isinstance(text, str) for text in texts.values()):
            return None
        return cls(node=node, **{name: str(text) for name, text in texts.items()})


def node_token(secret: bytes, node: int) -> str:
    """Return the token of one node, which only the holder of the secret can make."""
    return hmac.new(secret, str(node).encode(), hashlib.sha256).hexdigest()

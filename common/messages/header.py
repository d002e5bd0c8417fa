"""What can be read of a message without torch: the order's text. Everything else is `common.messages.protocol`'s."""

from flwr.app import ConfigRecord, RecordDict

ORDER, JSON = "order", "json"


def record_text(content: RecordDict, name: str) -> str:
    """Return the JSON text of a record; raises `ValueError` when there is none."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord) or not isinstance(record.get(JSON), str):
        raise ValueError(f"the message has no record {name!r}")
    return str(record[JSON])

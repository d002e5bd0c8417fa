"""The JSON texts of a message, read without torch. `common.messages.protocol` reads everything else."""

from flwr.app import ConfigRecord, RecordDict

ORDER, JSON = "order", "json"


def record_text(content: RecordDict, name: str) -> str:
    """Return the JSON text of a record; raises `ValueError` when the message has none."""
    record = content.get(name)
    if not isinstance(record, ConfigRecord) or not isinstance(record.get(JSON), str):
        raise ValueError(f"the message has no record {name!r}")
    return str(record[JSON])

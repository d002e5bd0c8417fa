import pytest
from flwr.app import ConfigRecord, RecordDict

from common.rpc.rounds import RECORD, Announcement, node_token

ANNOUNCED = Announcement("127.0.0.1:9", "", "run", 2**63 + 1, "node")


def test_announcement_travels_beside_the_content():
    content = RecordDict({"order": ConfigRecord({"json": "{}"})})
    ANNOUNCED.attach(content)
    assert Announcement.of(content) == ANNOUNCED
    assert set(content) == {"order", RECORD}


@pytest.mark.parametrize("change", [{"token": 3}, {"node": "1"}, {"address": b"x"}])
def test_unreadable_announcement_is_none(change):
    assert Announcement.of(RecordDict({RECORD: ConfigRecord({**vars(ANNOUNCED), **change})})) is None


def test_message_without_announcement_has_none():
    assert Announcement.of(RecordDict()) is None


def test_node_token_differs_by_node_and_secret():
    tokens = {node_token(secret, node) for secret in (b"a", b"b") for node in (1, 2)}
    assert len(tokens) == 4
    assert node_token(b"a", 1) == node_token(b"a", 1)

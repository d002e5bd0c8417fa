"""What a node's failure says to the user, and what replies weigh."""

from client.app import app as real_app
from common.messages import protocol
from strategies.engine.replies import last_line

KILLED = """<class 'ray.exceptions.OutOfMemoryError'>:<'1 worker(s) were killed due to the node running low on memory. \
Memory on the node (IP: 10.0.0.2, ID: f68566) was 6.72GB used / 23.54GB limit (0.285256)
OOM kill reason: Memory usage 7215599616B exceeded threshold of 505530272B (2.0% of 25276514304B limit)
Ray killed 1 worker(s) based on the killing policy
Refer to the documentation on how to address the out of memory issue.'>"""  # Ray 2.60, shortened


def test_worker_killed_for_memory_names_the_limit():
    assert last_line(KILLED) == (
        "its worker was killed for memory: the machine 10.0.0.2 has 6.72GB used / 23.54GB limit "
        "(threshold of 505530272B (2.0% of 25276514304B limit))"
    )


def test_traffic_has_training_and_evaluation_both_ways(run_strategy):
    bytes_ = {way: dict.fromkeys("12", 0) for way in ("down", "up")}

    def app(message, context):
        answer = real_app(message, context)
        if message.metadata.message_type in (protocol.TRAIN, protocol.EVALUATE):
            bytes_["down"][message.metadata.group_id] += protocol.message_bytes(message)
            bytes_["up"][message.metadata.group_id] += protocol.message_bytes(answer)
        return answer

    run = run_strategy({"server.clients-evaluate-every": 2}, [{"partition-id": 0}], app)
    assert [bool(record.client_accuracy) for record in run.records] == [False, True]
    assert [record.traffic for record in run.records] == [{way: bytes_[way][r] for way in bytes_} for r in "12"]


def test_other_failures_keep_their_last_line():
    assert last_line("Traceback\n  File\nValueError: no\n") == "ValueError: no"
    assert last_line(None) == "no reason given"

"""Names of the methods that the `.proto` files declare.

Requests and replies go through `framing`, not through generated stubs, whose serializers copy the features.
"""

from common.rpc import rounds_pb2, split_pb2, students_pb2

_SPLIT = split_pb2.DESCRIPTOR.services_by_name["Split"]
SPLIT: str = _SPLIT.full_name
TRAIN, OFFLOAD = (f"/{SPLIT}/{method.name}" for method in _SPLIT.methods)

_STUDENTS = students_pb2.DESCRIPTOR.services_by_name["Students"]
STUDENTS: str = _STUDENTS.full_name
(INFER,) = (f"/{STUDENTS}/{method.name}" for method in _STUDENTS.methods)

_ROUNDS = rounds_pb2.DESCRIPTOR.services_by_name["Rounds"]
ROUNDS: str = _ROUNDS.full_name
(WORK,) = (f"/{ROUNDS}/{method.name}" for method in _ROUNDS.methods)

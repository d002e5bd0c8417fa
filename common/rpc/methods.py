"""Names of the methods that `split.proto` declares.

Requests and replies go through `framing`, not through generated stubs, whose serializers copy the features.
"""

from common.rpc.split_pb2 import DESCRIPTOR

SERVICE: str = DESCRIPTOR.services_by_name["Split"].full_name
TRAIN, OFFLOAD = (f"/{SERVICE}/{method.name}" for method in DESCRIPTOR.services_by_name["Split"].methods)

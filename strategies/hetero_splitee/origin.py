"""The sender of a message of split training, or of split inference."""

from dataclasses import dataclass

from common.rpc.split_pb2 import Header

CLIENT = "client"  # plain value of a device's stored part: whose it is
NO_CLIENT = 2**32 - 1  # in the place of a client's id: a stored part of no client in particular


@dataclass(frozen=True)
class Origin:
    """The sender of a message and its place in the training."""

    run: str
    client: int
    cut: int
    round: int
    version: int = 0

    def header(self, index: int) -> Header:
        """Return the header of a message about batch `index`."""
        return Header(**vars(self), index=index)

    def __str__(self) -> str:
        return f"client {self.client} in round {self.round}"

"""Read messages from untrusted senders, and refuse them with a reason."""

from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from common.rpc import framing

M = TypeVar("M", bound=Message)


class Refused(RuntimeError):
    """A refused message, as a status for the client."""

    def __init__(self, code: grpc.StatusCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def malformed(reason: str) -> Refused:
    """Return the refusal of a message that no correct client sends."""
    return Refused(grpc.StatusCode.INVALID_ARGUMENT, reason)


def read(kind: type[M], raw: bytes) -> tuple[M, memoryview]:
    """Return a message without its data, and its data; raises `Refused` unless it is one of this kind."""
    try:
        head, data = framing.split(raw)
        return kind.FromString(head), data
    except (ValueError, DecodeError) as error:
        raise malformed(str(error)) from error


def abort(context: grpc.ServicerContext, refused: Refused) -> NoReturn:
    """End a call with the refusal."""
    context.abort(refused.code, str(refused))
    raise AssertionError("abort always raises")

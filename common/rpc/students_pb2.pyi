from common.rpc import split_pb2 as _split_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InferRequest(_message.Message):
    __slots__ = ("run", "student", "shape", "ids", "policy", "coding", "data")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STUDENT_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    CODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    run: str
    student: int
    shape: _containers.RepeatedScalarFieldContainer[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    policy: str
    coding: _split_pb2.Coding
    data: bytes
    def __init__(self, run: _Optional[str] = ..., student: _Optional[int] = ..., shape: _Optional[_Iterable[int]] = ..., ids: _Optional[_Iterable[int]] = ..., policy: _Optional[str] = ..., coding: _Optional[_Union[_split_pb2.Coding, str]] = ..., data: _Optional[bytes] = ...) -> None: ...

class InferReply(_message.Message):
    __slots__ = ("exit", "rows", "features", "seconds", "data")
    EXIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    exit: int
    rows: _containers.RepeatedScalarFieldContainer[int]
    features: _split_pb2.Features
    seconds: float
    data: bytes
    def __init__(self, exit: _Optional[int] = ..., rows: _Optional[_Iterable[int]] = ..., features: _Optional[_Union[_split_pb2.Features, _Mapping]] = ..., seconds: _Optional[float] = ..., data: _Optional[bytes] = ...) -> None: ...

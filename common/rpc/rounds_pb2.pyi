from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NodeFrame(_message.Message):
    __slots__ = ("hello", "head", "data")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    head: Head
    data: bytes
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("ack", "head", "end", "welcome", "data")
    ACK_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ack: Ack
    head: Head
    end: End
    welcome: Welcome
    data: bytes
    def __init__(self, ack: _Optional[_Union[Ack, _Mapping]] = ..., head: _Optional[_Union[Head, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("node", "token", "process", "orders")
    NODE_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    node: int
    token: str
    process: str
    orders: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, node: _Optional[int] = ..., token: _Optional[str] = ..., process: _Optional[str] = ..., orders: _Optional[_Iterable[int]] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("number", "kind", "seconds", "sizes", "error")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    number: int
    kind: str
    seconds: float
    sizes: _containers.RepeatedScalarFieldContainer[int]
    error: str
    def __init__(self, number: _Optional[int] = ..., kind: _Optional[str] = ..., seconds: _Optional[float] = ..., sizes: _Optional[_Iterable[int]] = ..., error: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ack(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

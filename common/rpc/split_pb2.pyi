from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Coding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CODING_UNSPECIFIED: _ClassVar[Coding]
    FP32: _ClassVar[Coding]
    FP16: _ClassVar[Coding]
    BF16: _ClassVar[Coding]
    UINT8: _ClassVar[Coding]
CODING_UNSPECIFIED: Coding
FP32: Coding
FP16: Coding
BF16: Coding
UINT8: Coding

class Header(_message.Message):
    __slots__ = ("run", "client", "cut", "round", "version", "index")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    CUT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    run: str
    client: int
    cut: int
    round: int
    version: int
    index: int
    def __init__(self, run: _Optional[str] = ..., client: _Optional[int] = ..., cut: _Optional[int] = ..., round: _Optional[int] = ..., version: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("coding", "shape", "scale", "offset")
    CODING_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    coding: Coding
    shape: _containers.RepeatedScalarFieldContainer[int]
    scale: _containers.RepeatedScalarFieldContainer[float]
    offset: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, coding: _Optional[_Union[Coding, str]] = ..., shape: _Optional[_Iterable[int]] = ..., scale: _Optional[_Iterable[float]] = ..., offset: _Optional[_Iterable[float]] = ...) -> None: ...

class TrainMessage(_message.Message):
    __slots__ = ("header", "hello", "batch", "end", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    hello: Hello
    batch: Batch
    end: End
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., end: _Optional[_Union[End, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Batch(_message.Message):
    __slots__ = ("features", "labels")
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    features: Features
    labels: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, features: _Optional[_Union[Features, _Mapping]] = ..., labels: _Optional[_Iterable[int]] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainReply(_message.Message):
    __slots__ = ("header", "welcome", "ack", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    welcome: Welcome
    ack: Ack
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., ack: _Optional[_Union[Ack, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("credit",)
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    credit: int
    def __init__(self, credit: _Optional[int] = ...) -> None: ...

class Ack(_message.Message):
    __slots__ = ("credit", "gradient")
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    credit: int
    gradient: Features
    def __init__(self, credit: _Optional[int] = ..., gradient: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class OffloadRequest(_message.Message):
    __slots__ = ("header", "features", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    features: Features
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., features: _Optional[_Union[Features, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class OffloadReply(_message.Message):
    __slots__ = ("header", "logits", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    LOGITS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: Header
    logits: Features
    data: bytes
    def __init__(self, header: _Optional[_Union[Header, _Mapping]] = ..., logits: _Optional[_Union[Features, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

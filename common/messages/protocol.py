"""What travels between server and nodes: typed records <-> Flower's RecordDict, the only place with key strings.

Arrays travel as one flat array per dtype with a JSON index, because Flower's deployment pays per array, not per byte.
JSON and raw arrays only: nothing that arrives is ever unpickled. Sizes and shapes are checked before memory is taken.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, TypeVar, get_origin, get_type_hints

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.messages.header import ORDER, record_text
from common.messages.npy import read_npy
from common.profiles import Profile
from common.weights.flat import FlatState, Layout
from common.weights.folding import MAX_WEIGHT, Fold, check_layout

INDEX, STATE, FOLD, LONE, ENTRIES = "index", "state", "fold", "lone", "entries"
CLIENT_STATE = "client-state"  # name of the array with a client's state where the server keeps it
MODEL = "model"  # the usual name of the one state that all clients of a message start from
QUERY, TRAIN, EVALUATE, DELIVER = "query", "train", "evaluate", "train.deliver"
CLIENTS = 2**32  # ids are below it: streams carry them as uint32
R = TypeVar("R")
NUMPY = {torch.float32: np.float32, torch.int64: np.int64}


@dataclass(frozen=True)
class Order:
    """What a node is asked to do, for each of `tasks`; the configuration is the server's, resolved."""

    run: str
    config: str  # JSON of the flat configuration
    round: int = 0
    bits: int = 0  # fraction bits of this round's sums
    fold: bool = True
    network: str = ""  # JSON of the NetworkSpec
    classes: tuple[str, ...] = ()
    costs: str = ""  # JSON of the CostTable
    describe: tuple[int, ...] = ()  # virtual clients that a roaming node reports on, in a query
    tasks: tuple["Task", ...] = ()
    round_values: Mapping[str, Any] = field(default_factory=dict)  # what the strategy's client half needs this round
    digest: str = ""  # of the server's packages; empty: any will do
    token: str = ""  # that the server has written into the shared store
    notice: str = ""  # for the node's log, in a query: why the server leaves it out
    profiles: Mapping[str, Any] = field(default_factory=dict)  # by name, of `clients.devices`: `Profile.known`


@dataclass(frozen=True)
class Task:
    """One client's part of an order."""

    client: int
    part: int
    version: int = 0  # round of the client's last committed state in its store; 0: none
    arrays: str = MODEL  # which of the order's states this client starts from; it may be larger than its tier
    samples: int = MAX_WEIGHT  # that it has announced: its model counts for no more
    client_values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ClientReport:
    """What a client declares: its choice of depth, why, and how many samples it trains on."""

    client: int
    part: int
    reason: str
    num_examples: int
    refused: str = ""  # why this client cannot take part, if it cannot
    values: Mapping[str, Any] = field(default_factory=dict)  # what the method wants to know of the choice
    profile: Mapping[str, float] = field(default_factory=dict)  # `Profile.known` of its device, by a simulated clock


@dataclass(frozen=True)
class NodeReport:
    """A node's answer to a query: its own clients, or `roaming` if it may host any virtual client."""

    partition: int
    roaming: bool
    clients: tuple[ClientReport, ...] = ()
    problem: str = ""  # why that machine cannot take part


@dataclass(frozen=True)
class ClientResult:
    """One client's outcome; `error` is empty when all went well."""

    client: int
    part: int
    num_examples: int = 0
    seconds: float = 0.0
    error: str = ""
    kept: bool = False  # whether the client wrote a state of this round to its store
    metrics: Mapping[str, float] = field(default_factory=dict)
    unfit: bool = False  # it trained, but its update is not finite or out of range, as `error` says


@dataclass
class Reply:
    """A node's answer: a result per client, folded sums per depth or lone states, and arrays per client."""

    results: list[ClientResult]
    reports: list[ClientReport] = field(default_factory=list)  # choices that changed since the last report
    folds: dict[int, Fold] = field(default_factory=dict)
    lone: dict[int, FlatState] = field(default_factory=dict)  # by client
    client_arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # by client, then name


ClientArrays = Mapping[int, Mapping[str, np.ndarray]]  # client -> name -> array
PackedState = tuple[ArrayRecord, ConfigRecord]  # made once by `pack_state`, however many messages carry it


@dataclass
class Payload:
    """Arrays of an order as a node reads them: states by name, and arrays per client."""

    states: Mapping[str, FlatState] = field(default_factory=dict)
    client_arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)


def pack_order(
    order: Order, states: Mapping[str, PackedState] | None = None, entries: ClientArrays | None = None
) -> RecordDict:
    """Return the content of a message to a node: each state once, however many of its clients start from it."""
    content = RecordDict({ORDER: _record(order)})
    for name, packed in (states or {}).items():
        content[f"{STATE}.{name}"], content[f"{STATE}.{name}.{INDEX}"] = packed
    if entries:
        content[ENTRIES], content[f"{ENTRIES}.{INDEX}"] = _pack_entries(entries)
    return content


def unpack_order(content: RecordDict) -> tuple[Order, Payload]:
    """Inverse of `pack_order`; raises `ValueError` on anything malformed."""
    with _reading():
        raw = _dict(content, ORDER)
        raw["tasks"] = tuple(_make(Task, t) for t in raw["tasks"])
        raw["classes"], raw["describe"] = tuple(raw["classes"]), tuple(raw["describe"])
        order = _make(Order, raw)
    names = [n.removeprefix(f"{STATE}.") for n in content if n.startswith(f"{STATE}.") and not n.endswith(f".{INDEX}")]
    return order, Payload({n: unpack_state(content, f"{STATE}.{n}") for n in names}, _entries(content))


def pack_report(report: NodeReport) -> RecordDict:
    """Return the content of a node's answer to a query."""
    return RecordDict({ORDER: _record(report)})


def unpack_report(content: RecordDict) -> NodeReport:
    """Inverse of `pack_report`; raises `ValueError` on anything malformed."""
    with _reading():
        raw = _dict(content, ORDER)
        raw["clients"] = tuple(_report(c) for c in raw["clients"])
        return _make(NodeReport, raw)


def pack_reply(reply: Reply) -> RecordDict:
    """Return the content of a node's answer to a train or evaluate order."""
    head = {"results": reply.results, "reports": reply.reports}
    content = RecordDict({ORDER: _record(head)})
    for depth, fold in reply.folds.items():
        if fold.sums is None or fold.counters is None:
            continue
        content[f"{FOLD}.{depth}"] = ArrayRecord(
            {"sums": Array(fold.sums.numpy()), "counters": Array(fold.counters.numpy())}
        )
        index = {
            "layout": fold.layout.to_json(),
            "bits": fold.bits,
            "weight": fold.weight,
            "clients": fold.clients,
        }
        content[f"{FOLD}.{depth}.{INDEX}"] = ConfigRecord({"json": json.dumps(index)})
    for client, state in reply.lone.items():
        content[f"{LONE}.{client}"], content[f"{LONE}.{client}.{INDEX}"] = pack_state(state)
    if reply.client_arrays:
        content[ENTRIES], content[f"{ENTRIES}.{INDEX}"] = _pack_entries(reply.client_arrays)
    return content


def unpack_reply(
    content: RecordDict, layouts: Mapping[int, Layout] | None = None, client_array_bytes: int | None = None
) -> Reply:
    """Inverse of `pack_reply`; raises `ValueError` on anything malformed.

    Given the tiers' `layouts` by depth, a model that is not of one of these shapes is refused before it is copied;
    given `client_array_bytes`, so are all clients' other arrays if they are larger together.
    """
    with _reading():
        head = _dict(content, ORDER)
        reply = Reply([_result(r) for r in head["results"]], [_report(r) for r in head["reports"]])
    depths = {result.client: result.part for result in reply.results}
    for name in content:
        kind, _, number = name.partition(".")
        if name.endswith(f".{INDEX}") or kind not in (FOLD, LONE):
            continue
        depth = depths.get(int(number)) if kind == LONE else int(number)
        if layouts is not None and depth not in layouts:
            raise ValueError(f"{name[:40]!r} is of no depth that was asked for")
        expected = None if layouts is None or depth is None else layouts[depth]
        if kind == LONE:
            reply.lone[int(number)] = unpack_state(content, name, expected)
        else:
            reply.folds[int(number)] = _fold(content, name, expected)
    reply.client_arrays = _entries(content, client_array_bytes)
    return reply


def pack_state(state: FlatState) -> PackedState:
    """Return a state as two arrays and its index."""
    arrays = {"floats": Array(state.floats.numpy()), "counters": Array(state.counters.numpy())}
    return ArrayRecord(arrays), ConfigRecord({"json": state.layout.to_json()})


def unpack_state(content: RecordDict, name: str, expected: Layout | None = None) -> FlatState:
    """Inverse of `pack_state`; raises `ValueError` when the arrays do not fit the index, or it is another one."""
    layout = _layout(record_text(content, f"{name}.{INDEX}"), expected)
    arrays, (floats, counters) = _arrays(content, name), layout.sizes
    return FlatState(
        layout, _tensor(arrays, "floats", torch.float32, floats), _tensor(arrays, "counters", torch.int64, counters)
    )


def _fold(content: RecordDict, name: str, expected: Layout | None) -> Fold:
    with _reading():
        index = _dict(content, f"{name}.{INDEX}")
        layout, clients = _layout(index["layout"], expected), [int(client) for client in index["clients"]]
        bits, weight = int(index["bits"]), int(index["weight"])
    arrays, (floats, counters) = _arrays(content, name), layout.sizes
    sums = _tensor(arrays, "sums", torch.int64, floats)
    return Fold(layout, bits, sums, _tensor(arrays, "counters", torch.int64, counters), weight, clients)


def _layout(text: str, expected: Layout | None) -> Layout:
    layout = Layout.from_json(text)
    if expected is not None:
        check_layout(layout, expected)
        return expected  # one object for all clients
    return layout


def message_bytes(message: Message) -> int:
    """Return the bytes of all arrays and records of a message's content."""
    if message.has_error():
        return 0
    return sum(
        sum(len(a.data) for a in record.values())
        if isinstance(record, ArrayRecord)
        else len(str(record.get("json", "")))
        for record in message.content.values()
    )


def _pack_entries(entries: ClientArrays) -> PackedState:
    parts: dict[str, list[np.ndarray]] = {}
    index: list[tuple[int, str, str, Sequence[int]]] = []
    for client, arrays in entries.items():
        for name, array in arrays.items():
            parts.setdefault(str(array.dtype), []).append(array.reshape(-1))
            index.append((client, name, str(array.dtype), array.shape))
    record = ArrayRecord({dtype: Array(np.concatenate(values)) for dtype, values in parts.items()})
    return record, ConfigRecord({"json": json.dumps(index)})


def _entries(content: RecordDict, most: int | None = None) -> dict[int, dict[str, np.ndarray]]:
    if ENTRIES not in content:
        return {}
    arrays, index = _arrays(content, ENTRIES), _json(content, f"{ENTRIES}.{INDEX}")
    sent = sum(array.nbytes for array in arrays.values())
    if most is not None and sent > most:
        raise ValueError(f"{sent} bytes of arrays came beside the models, where at most {most} are expected")
    position = dict.fromkeys(arrays, 0)
    entries: dict[int, dict[str, np.ndarray]] = {}
    with _reading():
        for client, name, dtype, shape in index:
            start, size = position[dtype], math.prod(shape)
            if min(shape, default=0) < 0 or arrays[dtype].ndim != 1 or start + size > len(arrays[dtype]):
                raise ValueError(f"entry {str(name)[:40]!r} of shape {str(shape)[:80]} is more than was sent")
            position[dtype] = start + size
            part = arrays[dtype][start : start + size].reshape(shape)
            entries.setdefault(int(client), {})[str(name)] = part.copy()  # what is read is a view of the message
    return entries


@contextmanager
def _reading() -> Iterator[None]:
    """Turn what wrong JSON makes Python raise into a `ValueError`."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"malformed message: {type(error).__name__}: {str(error)[:200]}") from error


def _result(values: Mapping[str, Any]) -> ClientResult:
    """Return a client's outcome, after a check of its numbers."""
    result = _make(ClientResult, values)
    _check_examples(result)
    for name, value in result.metrics.items():
        if not isinstance(value, int | float):
            raise TypeError(f"metric {name[:40]!r} is no number")
    return replace(result, metrics={name: float(value) for name, value in result.metrics.items()})


def _report(values: Mapping[str, Any]) -> ClientReport:
    report = _make(ClientReport, values)
    _check_examples(report)
    if not 0 <= report.client < CLIENTS:
        raise ValueError(f"client {str(report.client)[:20]}: ids are at least 0 and below {CLIENTS}")
    if report.profile:
        Profile(**report.profile)  # which checks the numbers
    return report


def _check_examples(record: ClientResult | ClientReport) -> None:
    if not 0 <= record.num_examples <= MAX_WEIGHT:
        raise ValueError(f"client {record.client}: {str(record.num_examples)[:20]} samples are not in 0..{MAX_WEIGHT}")


def _make(cls: type[R], values: Mapping[str, Any]) -> R:
    """Return a record of plain values; raises `TypeError` when one is missing, unknown or of another type."""
    made = cls(**values)
    for name, hint in _hints(cls).items():  # type: ignore[arg-type]
        value, plain = getattr(made, name), get_origin(hint) or hint
        allowed = (int, float) if plain is float else dict if plain is Mapping else plain
        if not isinstance(value, allowed) or (isinstance(value, bool) and plain is not bool):
            raise TypeError(f"{cls.__name__}.{name} is {value!r}, not {hint}")
    return made


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _record(value: Any) -> ConfigRecord:
    # `vars` turns nested records into objects; `dataclasses.asdict` would copy every value of a thousand clients
    return ConfigRecord({"json": json.dumps(value, default=vars)})


def _json(content: RecordDict, name: str) -> Any:
    try:
        return json.loads(record_text(content, name))
    except RecursionError as error:
        raise ValueError(f"record {name!r} is nested too deeply") from error


def _dict(content: RecordDict, name: str) -> dict[str, Any]:
    value = _json(content, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name!r} is not an object")
    return value


def _arrays(content: RecordDict, name: str) -> dict[str, np.ndarray]:
    record = content.get(name)
    if not isinstance(record, ArrayRecord):
        raise ValueError(f"the message has no arrays {name!r}")
    return {key: read_npy(array.data) for key, array in record.items()}


def _tensor(arrays: Mapping[str, np.ndarray], name: str, dtype: torch.dtype, size: int) -> torch.Tensor:
    array = arrays.get(name)
    if array is None or array.shape != (size,) or array.dtype != NUMPY[dtype]:
        raise ValueError(f"array {name!r} is missing or not a vector of {size} {dtype}")
    return torch.from_numpy(array.copy())  # what is read is a view of the message

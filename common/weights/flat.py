"""A model's state as one flat vector, to average, to pack for the wire and to step by the optimiser.

Flower's deployment costs time per array and an optimiser per tensor. A model is therefore one float vector (parameters,
then floating-point buffers) and one integer vector (counters such as BatchNorm's `num_batches_tracked`). `Layout` maps
keys to slices.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

StateDict = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """Keys and shapes of the float vector and of the counter vector, in order."""

    floats: tuple[tuple[str, tuple[int, ...]], ...]
    counters: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Lengths of the two vectors."""
        return _length(self.floats), _length(self.counters)

    @property
    def nbytes(self) -> int:
        """Bytes of the two vectors."""
        floats, counters = self.sizes
        return 4 * floats + 8 * counters

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """All keys, in order."""
        return tuple(key for key, _ in self.floats + self.counters)

    def only(self, chosen: Callable[[str], bool]) -> "Layout":
        """Return the part whose keys are chosen, in the same order."""
        return Layout(*(tuple(entry for entry in group if chosen(entry[0])) for group in (self.floats, self.counters)))

    def to_json(self) -> str:
        """Return a compact JSON form."""
        return json.dumps([self.floats, self.counters], separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> "Layout":
        """Inverse of `to_json`; raises `ValueError` on anything else."""
        try:
            groups = [tuple((str(k), tuple(int(n) for n in shape)) for k, shape in group) for group in json.loads(text)]
            return Layout(*groups)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ValueError(f"not a layout: {error}") from error


@dataclass
class FlatState:
    """A state dict as vectors: `floats` (P,) float32, `counters` (Q,) int64."""

    layout: Layout
    floats: Tensor
    counters: Tensor

    def state_dict(self) -> StateDict:
        """Return the tensors by key, as views."""
        return _views(self.layout.floats, self.floats) | _views(self.layout.counters, self.counters)

    @staticmethod
    def of(state: Mapping[str, Tensor]) -> "FlatState":
        """Flatten a state dict, in its own order, on the CPU."""
        floats = {k: v for k, v in state.items() if v.is_floating_point()}
        counters = {k: v for k, v in state.items() if not v.is_floating_point()}
        layout = Layout(_index(floats), _index(counters))
        return FlatState(layout, _concatenate(floats, torch.float32), _concatenate(counters, torch.int64))


class FlatModel(Generic[M]):
    """A module whose float parameters, buffers and gradients are views of flat vectors.

    Loading, reading, zeroing and stepping are then one operation each for any number of layers. Frozen parameters come
    after the trained ones, so `trained` is one contiguous leaf for the optimiser.
    """

    def __init__(self, module: M) -> None:
        self.module = module
        parameters = dict(module.named_parameters())
        trained = {k: p for k, p in parameters.items() if p.requires_grad}
        frozen = {k: p for k, p in parameters.items() if not p.requires_grad}
        kept = set(module.state_dict())
        buffers = {k: b for k, b in module.named_buffers() if k in kept}
        floats: dict[str, Tensor] = {
            **trained, **frozen, **{k: b for k, b in buffers.items() if b.is_floating_point()}
        }  # fmt: skip
        counters = {k: b for k, b in buffers.items() if not b.is_floating_point()}
        device = next(iter(floats.values())).device
        self.layout = Layout(_index(floats), _index(counters))
        self.floats = _concatenate(floats, torch.float32).to(device)
        self.counters = _concatenate(counters, torch.int64).to(device)
        for key, view in _views(self.layout.floats, self.floats).items():
            floats[key].data = view
        for key, view in _views(self.layout.counters, self.counters).items():
            counters[key].data = view
        size = sum(p.numel() for p in trained.values())
        self._learned = [self.floats[:size], self.floats[size + sum(p.numel() for p in frozen.values()) :]]
        self.upload_layout = Layout(tuple(e for e in self.layout.floats if e[0] not in frozen), self.layout.counters)
        self.trained = nn.Parameter(self.floats[:size])
        self.trained.grad = torch.zeros_like(self.trained)
        self._trained = _index(trained)
        for key, view in _views(self._trained, self.trained.grad).items():
            trained[key].grad = view

    def load(self, state: FlatState) -> None:
        """Copy a state in; raises `ValueError` unless keys and shapes are exactly the module's."""
        if state.layout == self.layout:
            self.floats.copy_(state.floats)
            self.counters.copy_(state.counters)
            return
        self.load_dict(state.state_dict())

    def load_dict(self, given: Mapping[str, Tensor]) -> None:
        """Copy a state dict in, which may have more keys; raises `ValueError` for a missing key or a wrong shape."""
        for key, view in self._all_views().items():
            if key not in given or given[key].shape != view.shape:
                raise ValueError(f"{key}: expected shape {tuple(view.shape)}, got {_shape(given.get(key))}")
            view.copy_(given[key])

    def read(self, layout: Layout) -> FlatState:
        """Return a copy of these keys on the CPU; `upload_layout` holds all keys that training changes."""
        if layout == self.upload_layout:
            return FlatState(layout, torch.cat(self._learned).cpu(), self.counters.cpu().clone())
        views = self._all_views()
        return FlatState.of({key: views[key] for key in layout.keys})

    def leaf(self, chosen: Callable[[str], bool]) -> nn.Parameter:
        """Return the trained parameters whose keys are chosen as one vector for an optimiser, sharing memory.

        Raises `ValueError` unless they lie side by side, as a network's units do, and as its exits do.
        """
        position, spans = 0, []
        for key, shape in self._trained:
            size = math.prod(shape)
            if chosen(key):
                spans.append((position, position + size))
            position += size
        if not spans or any(a[1] != b[0] for a, b in pairwise(spans)):
            raise ValueError("the chosen parameters do not exist, or do not lie side by side")
        part = slice(spans[0][0], spans[-1][1])
        assert self.trained.grad is not None
        leaf = nn.Parameter(self.trained.data[part])
        leaf.grad = self.trained.grad[part]
        return leaf

    def _all_views(self) -> StateDict:
        return _views(self.layout.floats, self.floats) | _views(self.layout.counters, self.counters)

    def zero_grad(self) -> None:
        """Clear all gradients in place; `Module.zero_grad` would drop the views."""
        assert self.trained.grad is not None
        self.trained.grad.zero_()


def _shape(tensor: Tensor | None) -> str:
    return "nothing" if tensor is None else str(tuple(tensor.shape))


def _length(index: tuple[tuple[str, tuple[int, ...]], ...]) -> int:
    return sum(math.prod(shape) for _, shape in index)


def _index(tensors: Mapping[str, Tensor]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((key, tuple(value.shape)) for key, value in tensors.items())


def _concatenate(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    if not tensors:
        return torch.zeros(0, dtype=dtype)
    return torch.cat([value.detach().cpu().to(dtype).reshape(-1) for value in tensors.values()])


def _views(index: tuple[tuple[str, tuple[int, ...]], ...], vector: Tensor) -> StateDict:
    sizes = [math.prod(shape) for _, shape in index]
    return {key: part.view(shape) for (key, shape), part in zip(index, vector.split(sizes), strict=True)}

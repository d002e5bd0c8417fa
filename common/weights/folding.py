"""A reproducible weighted sum: the same bits for every grouping of clients and every order of arrival.

Floating-point addition is not associative, so clients' models are summed as 64-bit integers in fixed point. The number
of fraction bits follows from the total weight of the sampled clients, so no sum can overflow. A client that is alone on
its node sends its model as fp32 and the server quantises it with the same function.
"""

import math
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor

from common.weights.flat import FlatState, Layout

MAGNITUDE_BITS = 12
MAGNITUDE = float(2**MAGNITUDE_BITS)  # a weight or running variance beyond this comes from a client that diverged
MAX_FRACTION_BITS = 40
SUM_BITS = 62  # of an int64's 63, so that rounding cannot overflow either
MAX_WEIGHT = 2**29 - 1  # of one client: the largest for which `quantise` is exact
MAX_COUNTER = 2**53  # more batches than any client trains; far below the overflow of an int64


def fraction_bits(total_weight: int) -> int:
    """Return the fraction bits for which a sum of |w| < 4096 with this total weight stays below 2**62."""
    return min(MAX_FRACTION_BITS, SUM_BITS - MAGNITUDE_BITS - max(1, total_weight).bit_length())


def quantise(values: Tensor, weight: int, bits: int) -> Tensor:
    """Return round(values * weight * 2**bits) as int64; exact except for the rounding, which is to even.

    The product of a float32 (24 bits) with a weight below 2**29 is exact in float64, the scale is a power of two.
    """
    return values.double().mul_(float(weight) * 2.0**bits).round_().to(torch.int64)


class UnfitError(ValueError):
    """A client's update cannot be averaged: not finite, out of range, of another shape, or far from all others."""


def check_layout(given: Layout, layout: Layout) -> None:
    """Raise `UnfitError` unless keys and shapes are the tier's."""
    if given != layout:
        expected, found = (dict(one.floats + one.counters) for one in (layout, given))
        wrong = sorted(k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k))
        raise UnfitError(f"keys or shapes differ from the tier's, first: {', '.join(wrong[:3])[:200] or 'order'}")


def check(state: FlatState, layout: Layout) -> None:
    """Raise `UnfitError` unless a client's state has the right keys and shapes and is finite and in range."""
    check_layout(state.layout, layout)
    if (len(state.floats), len(state.counters)) != layout.sizes:
        raise UnfitError(f"sizes {len(state.floats)}, {len(state.counters)} differ from the tier's {layout.sizes}")
    check_values(state)


def check_values(state: FlatState) -> None:
    """Raise `UnfitError`, with the first key and its value, unless a state is finite and in range."""
    floats = state.floats
    low, high = torch.aminmax(floats) if len(floats) else (torch.zeros(()), torch.zeros(()))
    # NaN compares false, so it fails this check too
    if not (low > -MAGNITUDE and high < MAGNITUDE):
        if low.isfinite() & high.isfinite():
            raise UnfitError(f"weights out of range: {_first(state.layout.floats, floats, floats.abs() >= MAGNITUDE)}")
        raise UnfitError(f"weights are not finite: {_first(state.layout.floats, floats, ~floats.isfinite())}")
    _check_counters(state.layout, state.counters)


def _check_counters(layout: Layout, counters: Tensor) -> None:
    if len(counters) and (int(counters.min()) < 0 or int(counters.max()) > MAX_COUNTER):
        bad = (counters < 0) | (counters > MAX_COUNTER)
        raise UnfitError(f"counters out of range: {_first(layout.counters, counters, bad)}")


def _first(entries: tuple[tuple[str, tuple[int, ...]], ...], values: Tensor, bad: Tensor) -> str:
    """Return the key and the value of the first bad one, as a phrase."""
    position = int(bad.nonzero()[0])
    ends = accumulate(math.prod(shape) for _, shape in entries)
    key = next(key for (key, _), end in zip(entries, ends, strict=True) if position < end)
    return f"{key[:200]} has {values[position].item():g}"


@dataclass
class Fold:
    """Running weighted sum of one tier's clients."""

    layout: Layout
    bits: int
    sums: Tensor | None = None  # (P,) int64
    counters: Tensor | None = None  # (Q,) int64
    weight: int = 0
    clients: list[int] = field(default_factory=list)

    def add_state(self, state: FlatState, weight: int, client: int) -> None:
        """Fold one client's checked model in; raises `ValueError` for a weight too large for the fraction bits."""
        self._add(quantise(state.floats, weight, self.bits), state.counters, weight, [client])

    def add(self, other: "Fold") -> None:
        """Fold another partial sum of the same tier and round in; raises `ValueError` for any other sum."""
        if other.bits != self.bits or other.layout != self.layout:
            raise ValueError("partial sums of different rounds or tiers cannot be added")
        if other.sums is not None and other.counters is not None:
            low, high = torch.aminmax(other.sums) if len(other.sums) else (torch.zeros(()), torch.zeros(()))
            if max(-int(low), int(high)) > MAGNITUDE * other.weight * 2.0**self.bits:
                raise UnfitError("the folded sum is out of range")
            _check_counters(self.layout, other.counters)
            self._add(other.sums, other.counters, other.weight, other.clients)

    def rescaled(self, share: float, bits: int) -> "Fold":
        """Return a sum of the same mean with this share of the weight, at least 1, and other fraction bits."""
        if self.sums is None or self.counters is None:
            raise ValueError("nothing was folded")
        weight = max(1, round(self.weight * share))
        sums = self.sums.double().mul_(weight / self.weight * 2.0 ** (bits - self.bits)).round_().to(torch.int64)
        return Fold(self.layout, bits, sums, self.counters, weight, list(self.clients))

    def mean(self) -> FlatState:
        """Return the weighted mean; counters are the maximum, since a count of batches has no mean."""
        if self.sums is None or self.counters is None:
            raise ValueError("nothing was folded")
        mean = self.sums.double().div_(float(self.weight) * 2.0**self.bits).float()
        return FlatState(self.layout, mean, self.counters)

    def _add(self, sums: Tensor, counters: Tensor, weight: int, clients: list[int]) -> None:
        if weight < 1 or (self.weight + weight).bit_length() > SUM_BITS - MAGNITUDE_BITS - self.bits:
            raise ValueError(f"weight {weight} is impossible: the clients of this round announced fewer samples")
        if self.sums is None or self.counters is None:
            self.sums, self.counters = sums, counters.clone()
        else:
            self.sums += sums
            torch.maximum(self.counters, counters, out=self.counters)
        self.weight += weight
        self.clients += clients

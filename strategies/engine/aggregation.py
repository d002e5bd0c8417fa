"""Averaging inside a depth tier and layer by layer across tiers."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from common.messages.protocol import ClientResult, Reply
from common.weights.flat import FlatState, Layout, StateDict
from common.weights.folding import Fold, UnfitError, check


@dataclass(frozen=True)
class TierUpdate:
    """One tier's clients of a round, averaged: W_k, n_k and who they are."""

    state: StateDict
    weight: int  # training samples
    clients: tuple[int, ...]


@dataclass
class RoundUpdate:
    """What a round brought: a tier update per depth that had replies, and every client's outcome."""

    tiers: dict[int, TierUpdate] = field(default_factory=dict)
    results: dict[int, ClientResult] = field(default_factory=dict)  # of clients that succeeded, in client order
    failures: dict[int, str] = field(default_factory=dict)  # client -> reason
    rejected: set[int] = field(default_factory=set)  # of the failures, those whose answer came but is unfit
    late: dict[int, tuple[int, ClientResult]] = field(
        default_factory=dict
    )  # client -> (round it was asked in, outcome)
    client_arrays: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)  # by client, in client order
    states: dict[int, FlatState] = field(default_factory=dict)  # by client, where a method wants them apart

    def mean_metrics(self) -> dict[str, float]:
        """Average the clients' metrics, weighted by samples, in client order."""
        sums: dict[str, float] = {}
        weights: dict[str, int] = {}
        for result in self.results.values():
            for key, value in result.metrics.items():
                sums[key] = sums.get(key, 0.0) + value * result.num_examples
                weights[key] = weights.get(key, 0) + result.num_examples
        return {key: sums[key] / weights[key] for key in sorted(sums)}


class RoundCollector:
    """Takes replies in any order and holds one accumulator per tier, never one model per client (unless `apart`)."""

    def __init__(
        self,
        layouts: Mapping[int, Layout],
        bits: int,
        asked: Mapping[int, int],
        announced: Mapping[int, int],
        *,
        apart: bool = False,
    ) -> None:
        """`asked` maps the clients of this round to their depths, `announced` to the samples that they said they have.

        `bits` follow from the latter, so that no sum of models overflows.
        """
        self.layouts, self.bits, self.asked, self.announced, self.apart = layouts, bits, asked, announced, apart
        self.folds: dict[int, Fold] = {}
        self.update = RoundUpdate()

    def add(self, reply: Reply, hosted: Collection[int]) -> None:
        """Take a node's reply in; what is wrong is recorded as its clients' failure.

        `hosted` are the clients that this node was asked for; it cannot speak for others.
        """
        good = self._succeeded([result for result in reply.results if result.client in hosted])
        given: set[int] = set()  # clients whose model has been taken in: each counts once
        for depth, fold in reply.folds.items():
            try:
                self._add_fold(depth, fold, good)
                given |= set(fold.clients)
            except ValueError as error:
                for client in (set(fold.clients) & set(hosted)) - given - set(self.update.failures):
                    self.reject(client, str(error))
        for client, state in reply.lone.items():
            if client not in good or client in given or client in self.update.failures:
                continue
            try:
                self._add_lone(client, state, good[client])
                given.add(client)
            except ValueError as error:
                self.reject(client, str(error))
        for client, result in good.items():
            if client not in self.update.failures and client not in given and self.layouts[self.asked[client]].keys:
                self.reject(client, "sent no model")
            if client not in self.update.failures:
                self.update.results[client] = result
                self.update.client_arrays[client] = reply.client_arrays.get(client, {})

    def fold_late(self, depth: int, fold: Fold) -> None:
        """Take in a checked sum of clients that were asked in an earlier round."""
        self._fold(depth).add(fold)

    def fail(self, client: int, reason: str) -> None:
        """Leave a client out of this round."""
        self.update.failures[client] = reason

    def reject(self, client: int, reason: str) -> None:
        """Leave a client out because of what it sent."""
        self.fail(client, reason)
        self.update.rejected.add(client)

    def finish(self) -> RoundUpdate:
        """Return the round's update, everything in client order."""
        for client in self.asked:
            if client not in self.update.results and client not in self.update.failures:
                self.fail(client, "did not answer in time")
        for depth, fold in sorted(self.folds.items()):
            if not fold.clients:  # all that its tier sent was refused
                continue
            self.update.tiers[depth] = TierUpdate(fold.mean().state_dict(), fold.weight, tuple(sorted(fold.clients)))
        for name in ("results", "failures", "client_arrays", "states"):
            setattr(self.update, name, dict(sorted(getattr(self.update, name).items())))
        return self.update

    def _succeeded(self, results: Iterable[ClientResult]) -> dict[int, ClientResult]:
        good: dict[int, ClientResult] = {}
        for result in results:
            announced = self.announced[result.client]
            if result.error:
                (self.reject if result.unfit else self.fail)(result.client, result.error)
            elif result.num_examples > announced:
                self.reject(result.client, f"counts {result.num_examples} samples, where it announced {announced}")
            else:
                good[result.client] = result
        return good

    def _add_fold(self, depth: int, fold: Fold, good: Mapping[int, ClientResult]) -> None:
        if self.apart:
            raise UnfitError("its model came in a sum, but each is needed apart")
        if fold.layout != self.layouts.get(depth) or fold.bits != self.bits:
            raise ValueError("the folded sum does not fit this round's tier")
        members = set(fold.clients)
        able = {c for c in good if c not in self.update.failures and self.asked[c] == depth}
        if len(members) != len(fold.clients) or not members <= able:
            raise ValueError("the folded sum holds clients that failed, or that its node was not asked for")
        expected = sum(good[c].num_examples for c in members)
        if expected != fold.weight:
            raise ValueError("the folded sum's weight is not its clients' number of samples")
        self._fold(depth).add(fold)

    def _add_lone(self, client: int, state: FlatState, result: ClientResult) -> None:
        depth = self.asked[client]
        check(state, self.layouts[depth])
        if self.apart:
            self.update.states[client] = state
        self._fold(depth).add_state(state, result.num_examples, client)

    def _fold(self, depth: int) -> Fold:
        return self.folds.setdefault(depth, Fold(self.layouts[depth], self.bits))


class LayerMean:
    """The weighted mean of every key over the models that hold it, a model at a time."""

    def __init__(self) -> None:
        self.sums: StateDict = {}
        self.weights: dict[str, float] = {}

    def add(self, model: Mapping[str, Tensor], weight: float) -> None:
        """Take a model in; one without weight counts for nothing, not even for its keys."""
        if not weight:
            return
        for key, value in model.items():
            if not value.is_floating_point():
                self.sums[key] = torch.maximum(self.sums[key], value) if key in self.sums else value.clone()
                continue
            term = value.double() * weight
            self.sums[key] = self.sums[key] + term if key in self.sums else term
            self.weights[key] = self.weights.get(key, 0.0) + weight

    def result(self) -> StateDict:
        """Return the means, of counters the maxima."""
        return {
            key: (value / self.weights[key]).float() if key in self.weights else value
            for key, value in self.sums.items()
        }


def average_layers(models: Mapping[int, StateDict], weights: Mapping[int, float]) -> StateDict:
    """Average every key over the tiers that hold it, weighted by n_k (DarkDistill step 8, EEFL).

    Returns the keys of all models that have weight; a layer that only weightless tiers hold is left out.
    """
    mean = LayerMean()
    for depth in sorted(models):
        mean.add(models[depth], weights.get(depth, 0.0))
    return mean.result()

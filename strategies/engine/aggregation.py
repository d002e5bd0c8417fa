"""Averaging the clients of each part, one accumulator per part."""

from collections.abc import Collection, Iterable, Mapping

from common.messages.protocol import ClientResult, Reply
from common.weights.flat import FlatState, Layout
from common.weights.folding import Fold, UnfitError, check
from strategies.method import RoundUpdate, TierUpdate


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
        """`asked` maps the clients of this round to their parts, `announced` to the number of samples in their reports.

        `bits` follow from the latter, so that no sum of models overflows.
        """
        self.layouts, self.bits, self.asked, self.announced, self.apart = layouts, bits, asked, announced, apart
        self.folds: dict[int, Fold] = {}
        self.update = RoundUpdate()

    def add(self, reply: Reply, hosted: Collection[int]) -> None:
        """Take a node's reply in; what is wrong is recorded as its clients' failure.

        `hosted` are the clients of the message to this node; results for other clients are ignored.
        """
        good = self._succeeded([result for result in reply.results if result.client in hosted])
        given: set[int] = set()  # clients whose model has been taken in: each counts once
        for part, fold in reply.folds.items():
            try:
                self._add_fold(part, fold, good)
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

    def fold_late(self, part: int, fold: Fold) -> None:
        """Take in a checked sum of clients that were asked in an earlier round."""
        self._fold(part).add(fold)

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
        for part, fold in sorted(self.folds.items()):
            if not fold.clients:  # all that its tier sent was refused
                continue
            self.update.tiers[part] = TierUpdate(fold.mean().state_dict(), fold.weight, tuple(sorted(fold.clients)))
        for name in ("results", "failures", "client_arrays", "states"):
            setattr(self.update, name, dict(sorted(getattr(self.update, name).items())))
        return self.update

    def _succeeded(self, results: Iterable[ClientResult]) -> dict[int, ClientResult]:
        good: dict[int, ClientResult] = {}
        for result in results:
            announced = self.announced[result.client]
            if result.error:
                (self.reject if result.unfit else self.fail)(result.client, result.error)
            elif result.metrics and result.num_examples < 1:
                self.reject(result.client, f"has metrics of {result.num_examples} samples")
            elif result.num_examples > announced:
                self.reject(result.client, f"counts {result.num_examples} samples, where it announced {announced}")
            else:
                good[result.client] = result
        return good

    def _add_fold(self, part: int, fold: Fold, good: Mapping[int, ClientResult]) -> None:
        if self.apart:
            raise UnfitError("its model came in a sum, but each is needed apart")
        if fold.layout != self.layouts.get(part) or fold.bits != self.bits:
            raise ValueError("the folded sum does not fit this round's tier")
        members = set(fold.clients)
        able = {c for c in good if c not in self.update.failures and self.asked[c] == part}
        if len(members) != len(fold.clients) or not members <= able:
            raise ValueError("the folded sum holds clients that failed, or that its node was not asked for")
        expected = sum(good[c].num_examples for c in members)
        if expected != fold.weight:
            raise ValueError("the folded sum's weight is not its clients' number of samples")
        self._fold(part).add(fold)

    def _add_lone(self, client: int, state: FlatState, result: ClientResult) -> None:
        part = self.asked[client]
        check(state, self.layouts[part])
        if self.apart:
            self.update.states[client] = state
        self._fold(part).add_state(state, result.num_examples, client)

    def _fold(self, part: int) -> Fold:
        return self.folds.setdefault(part, Fold(self.layouts[part], self.bits))

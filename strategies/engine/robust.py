"""Robust aggregation: what a few broken or hostile clients send must not decide the model.

1. An update is what a client's model moved from where it started. One whose L2 norm exceeds `reject` times the median
   norm of its tier's updates of the round is rejected. A tier of one or two is too small for that: there the
   updates of all tiers are compared, on the layers that all of them hold.
2. Of each tier's remaining models take the weighted mean, or coordinate by coordinate the trimmed mean or the median
   (Yin et al., ICML 2018). Then every client counts the same: its number of samples is only a claim. For the same
   reason a tier weighs, against other tiers, as if all its clients had the median number of samples.

Every model is needed by itself, so nodes fold nothing and the server holds one model per client while a round lasts.
Nothing depends on the order of arrival.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from logging import WARNING

import torch
from flwr.supercore import log
from torch import Tensor

from common.config import RunConfig
from common.errors import UserError
from common.messages.protocol import ClientResult
from common.weights.flat import FlatState, Layout
from common.weights.folding import check
from strategies.engine.aggregation import RoundCollector
from strategies.engine.settings import RobustSettings
from strategies.method import Method, RoundUpdate, TierUpdate

MIN_NORMS = 3  # of two updates neither can be called far off
COLUMNS = 1 << 18  # sorted at a time, which bounds the memory beyond the models themselves
States = dict[int, FlatState]  # by client


def robust_settings(config: RunConfig, method: Method) -> RobustSettings:
    """Return the run's section; raises `UserError` where clients send more than models to be averaged."""
    settings = config.of(RobustSettings)
    if mistake := settings.unguarded(config.run.strategy, method.robust):
        raise UserError(mistake)
    return settings


def make_collector(
    settings: RobustSettings,
    layouts: Mapping[int, Layout],
    bits: int,
    asked: Mapping[int, int],
    announced: Mapping[int, int],
    start: Callable[[int], FlatState],
    *,
    apart: bool,
) -> RoundCollector:
    """Return what takes a round's replies in; `start` gives the state that clients of a part started from."""
    if settings.active:
        return RobustCollector(settings, layouts, bits, asked, announced, start, keep=apart)
    return RoundCollector(layouts, bits, asked, announced, apart=apart)


class RobustCollector(RoundCollector):
    """Holds every model until all have come."""

    def __init__(
        self,
        settings: RobustSettings,
        layouts: Mapping[int, Layout],
        bits: int,
        asked: Mapping[int, int],
        announced: Mapping[int, int],
        start: Callable[[int], FlatState],
        *,
        keep: bool,
    ) -> None:
        """`keep`: the method wants the clients' models, too."""
        super().__init__(layouts, bits, asked, announced, apart=True)
        self.settings, self.start, self.keep = settings, start, keep

    def finish(self) -> RoundUpdate:
        """Reject what is far off and combine the rest."""
        tiers: dict[int, States] = {part: {} for part in sorted(set(self.asked.values()))}
        for client, state in sorted(self.update.states.items()):
            tiers[self.asked[client]][client] = state
        if self.settings.reject:
            self._reject_far_off(tiers)
        if self.settings.aggregation == "mean":
            for part, states in tiers.items():
                for client, state in states.items():
                    self._fold(part).add_state(state, self.update.results[client].num_examples, client)
        update = super().finish()
        if self.settings.aggregation != "mean":
            update.tiers = {part: self._combine(part, states) for part, states in tiers.items() if states}
        if not self.keep:
            update.states = {}
        return update

    def _add_lone(self, client: int, state: FlatState, result: ClientResult) -> None:
        check(state, self.layouts[self.asked[client]])
        if result.num_examples < 1:
            raise ValueError(f"weight {result.num_examples} is impossible")
        self.update.states[client] = state

    def _reject_far_off(self, tiers: Mapping[int, States]) -> None:
        """Take updates whose norm is far beyond the others' out of their tiers."""
        keys = {part: [key for key, _ in self.layouts[part].floats] for part, states in tiers.items() if states}
        common = [key for key in next(iter(keys.values()), ()) if all(key in held for held in keys.values())]
        shared = dict[int, float]()
        if common and any(len(tiers[part]) < MIN_NORMS for part in keys):
            shared = {client: norm for d in keys for client, norm in self._norms(d, tiers[d], common).items()}
        for part, held in keys.items():
            states, group = tiers[part], "of its tier"
            if len(states) >= MIN_NORMS:
                norms = self._norms(part, states, held)
            else:
                norms, group = shared, "of all updates, on the layers that all hold"
            if len(norms) < MIN_NORMS:
                log(WARNING, "tier %d: %d updates are too few to find one that is far off", part, len(states))
                continue
            for client in set(far_off(norms, self.settings.reject)) & set(states):
                self.reject(client, f"its update's norm of {norms[client]:.4g} is more than {self.settings.reject:g} "
                                    f"times the median {group}, {lower_median(norms.values()):.4g}")  # fmt: skip
                for by_client in (states, self.update.states, self.update.results, self.update.client_arrays):
                    by_client.pop(client)

    def _norms(self, part: int, states: States, keys: Sequence[str]) -> dict[int, float]:
        """Return how far each client's model has moved from its start in these layers, an L2 norm."""
        start = self.start(part).state_dict()
        moved = {}
        for client, state in states.items():
            values = state.state_dict()
            squares = (float((values[key].double() - start[key].double()).square().sum()) for key in keys)
            moved[client] = math.sqrt(math.fsum(squares))
        return moved

    def _combine(self, part: int, states: States) -> TierUpdate:
        number = len(states)
        cut = trimmed(number, 0.5 if self.settings.aggregation == "median" else self.settings.trim)
        floats = trimmed_mean([state.floats for state in states.values()], cut)
        counters = torch.stack([state.counters for state in states.values()]).sort(dim=0).values[(number - 1) // 2]
        samples = lower_median(self.update.results[client].num_examples for client in states)
        state = FlatState(self.layouts[part], floats, counters)
        return TierUpdate(state.state_dict(), number * int(samples), tuple(states))


def far_off(norms: Mapping[int, float], factor: float) -> list[int]:
    """Return the clients whose norm exceeds `factor` times the lower median; none if half of them did not move."""
    bound = factor * lower_median(norms.values())
    return [client for client, norm in sorted(norms.items()) if norm > bound > 0]


def lower_median(values: Iterable[float]) -> float:
    """Return the median, of an even number the smaller of the two in the middle."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


def trimmed(number: int, share: float) -> int:
    """Return how many of `number` values to cut off at each end; at least one value stays, a half leaves the median."""
    # rounded up, but not for what floating point adds to a whole number
    return min(math.ceil(share * number - 1e-9), (number - 1) // 2)


def trimmed_mean(vectors: Sequence[Tensor], cut: int) -> Tensor:
    """Return the mean of each coordinate without its `cut` smallest and largest values (Yin et al., section 4).

    Args:
        vectors: N vectors `(P,)`, finite; their order does not matter to the last bit.
        cut: 0 is the plain mean, (N - 1) // 2 the median.

    Returns:
        `(P,)` float32.
    """
    result = torch.empty_like(vectors[0])
    for part in range(0, len(result), COLUMNS):
        columns = slice(part, part + COLUMNS)
        ordered = torch.stack([vector[columns] for vector in vectors]).sort(dim=0).values
        # + 0.0 because zeros of either sign are equal, so they stay in the order in which they came
        result[columns] = ordered[cut : len(vectors) - cut].double().mean(dim=0).float() + 0.0
    return result

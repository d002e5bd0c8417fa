"""Running statistics by cut, as a state dict carries them: batch norm sees unlike features behind unlike cuts."""

from collections.abc import Mapping

from common.weights.flat import StateDict

STATISTICS = "statistics."  # then the cut and the key: what the layers after this cut have beside the whole's
SERVER_HALF = "server_half"  # plain value of a stored model: it is the server's half, devices have the first units


def with_cuts(state: StateDict, statistics: Mapping[int, StateDict]) -> StateDict:
    """Return a state with the statistics of each cut beside its keys."""
    return state | {f"{STATISTICS}{cut}.{key}": v for cut, own in statistics.items() for key, v in own.items()}


def statistics_by_cut(state: StateDict) -> dict[int, StateDict]:
    """Return the statistics that `with_cuts` put into a state; raises `ValueError` when a cut is no number."""
    by_cut: dict[int, StateDict] = {}
    for key, value in state.items():
        if key.startswith(STATISTICS):
            cut, _, own = key.removeprefix(STATISTICS).partition(".")
            by_cut.setdefault(int(cut), {})[own] = value
    return by_cut

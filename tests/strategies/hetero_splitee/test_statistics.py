"""Running statistics of clients and cuts: which a client has, their means, and their place in a state dict."""

import pytest
import torch

from common.networks import NetworkSpec, build
from common.weights.flat import StateDict
from strategies.hetero_splitee.statistics import CLIENTS, STATISTICS, RunningStatistics, statistics_of

SPEC = NetworkSpec("resnet_slim", 3, (1, 8, 8), width=2)


def values(number: float, first: int = 2) -> StateDict:
    """Return statistics of the units from the cut `first` on, all of one number."""
    return {f"units.{unit}.bn1.running_mean": torch.full((4,), number) for unit in range(first, 5)}


def filled(how: str) -> RunningStatistics:
    running = RunningStatistics(how)  # type: ignore[arg-type]
    sets = {3: (2, 10, values(1.0)), 8: (2, 30, values(5.0)), 5: (3, 20, values(7.0, 3))}
    for client, (cut, _, own) in sets.items():
        running.keep(client, cut, own)
    running.average(sets.values())
    return running


def means(running: RunningStatistics, client: int, cut: int) -> dict[int, float]:
    return {int(key.split(".")[1]): float(value[0]) for key, value in running.of(client, cut).items()}


def test_a_client_has_its_own_its_cuts_or_none() -> None:
    own, cut, shared = (filled(how) for how in ("own", "cut", "shared"))
    assert means(own, 3, 2) == {2: 1.0, 3: 1.0, 4: 1.0}
    for running in (own, cut):
        assert means(running, 99, 2) == {2: 4.0, 3: 4.0, 4: 4.0}  # (10 * 1 + 30 * 5) / 40
        assert means(running, 99, 3) == {3: 7.0, 4: 7.0}
        assert means(running, 99, 4) == {}
    assert means(cut, 3, 2) == {2: 4.0, 3: 4.0, 4: 4.0}
    assert means(shared, 3, 2) == {}
    assert shared.nbytes() == 0
    assert cut.nbytes() == (3 + 2) * 4 * 4
    assert own.nbytes() == cut.nbytes() + (3 + 3 + 2) * 4 * 4


def test_a_client_that_changes_its_cut_keeps_what_it_had() -> None:
    running = filled("own")
    assert means(running, 5, 2) == {2: 4.0, 3: 7.0, 4: 7.0}  # unit 2 is new to it: as its new cut's clients
    assert means(running, 3, 3) == {2: 1.0, 3: 1.0, 4: 1.0}


def test_sets_are_copies() -> None:
    running, own = RunningStatistics("own"), values(1.0)
    running.keep(3, 2, own)
    own["units.2.bn1.running_mean"].fill_(9)
    assert means(running, 3, 2) == {2: 1.0, 3: 1.0, 4: 1.0}


def test_the_shallowest_cut_with_a_layer_decides() -> None:
    running = RunningStatistics("cut", {3: values(7.0, 3), 2: values(4.0)})
    assert {key: float(value[0]) for key, value in running.shallowest().items()} == dict.fromkeys(values(4.0), 4.0)


@pytest.mark.parametrize("how", ["own", "cut", "shared"])
def test_sets_come_back_from_a_state(how: str) -> None:
    state, running = build(SPEC, seed=5).state_dict(), filled(how)
    found = statistics_of(running.beside(state))
    assert statistics_of(state) == RunningStatistics("own")
    for client, cut in ((3, 2), (8, 2), (5, 3), (5, 2), (99, 2)):
        assert means(found, client, cut) == means(running, client, cut)
    assert found.nbytes() == running.nbytes()


def test_malformed_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        statistics_of({f"{STATISTICS}two.units.3.bn1.running_mean": torch.rand(4)})
    with pytest.raises(ValueError, match="cut 2 are not those of 3 clients"):
        statistics_of({f"{CLIENTS}2": torch.arange(3), f"{CLIENTS}2.units.3.bn1.running_mean": torch.rand(2, 4)})

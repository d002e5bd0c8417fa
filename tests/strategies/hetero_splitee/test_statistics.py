"""Statistics by cut travel in a state dict beside the network's keys."""

import pytest
import torch

from common.networks import NetworkSpec, build
from strategies.hetero_splitee.statistics import STATISTICS, statistics_by_cut, with_cuts

SPEC = NetworkSpec("resnet_slim", 3, (1, 8, 8), width=2)


def test_statistics_by_cut_come_back_from_a_state() -> None:
    state = build(SPEC, seed=5).state_dict()
    by_cut = {cut: {f"units.{u}.bn1.running_mean": torch.rand(4) for u in range(cut, 5)} for cut in (2, 3)}
    found = statistics_by_cut(with_cuts(state, by_cut))
    assert {cut: sorted(own) for cut, own in found.items()} == {cut: sorted(own) for cut, own in by_cut.items()}
    assert all(torch.equal(value, by_cut[cut][key]) for cut, own in found.items() for key, value in own.items())
    assert statistics_by_cut(state) == {}


def test_a_cut_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="invalid literal for int"):
        statistics_by_cut({f"{STATISTICS}two.units.3.bn1.running_mean": torch.rand(4)})

import pytest
import torch

from strategies.hetero_splitee.client_sync import synchronised


def device(cut, value, tracked):
    units = {f"units.{u}.weight": torch.full((2,), value) for u in range(cut)}
    return {**units, "units.0.tracked": torch.tensor(tracked), f"exits.{cut}.bias": torch.full((1,), value)}


DEVICES = {4: device(1, 1.0, 3), 1: device(2, 4.0, 9), 2: device(2, 10.0, 5), 3: device(3, 20.0, 1)}
CUTS, SAMPLES = {4: 1, 1: 2, 2: 2, 3: 3}, {4: 10, 1: 10, 2: 20, 3: 40}


def numbers(part):
    return {key: pytest.approx(value.flatten()[0].item()) for key, value in part.items()}


def test_same_cut_averages_whole_devices():
    by_cut = synchronised(DEVICES, CUTS, SAMPLES, "same_cut")
    assert list(by_cut) == [1, 2, 3]
    assert numbers(by_cut[1]) == {"units.0.weight": 1, "units.0.tracked": 3, "exits.1.bias": 1}
    assert numbers(by_cut[2]) == {"units.0.weight": 8, "units.1.weight": 8, "units.0.tracked": 9, "exits.2.bias": 8}
    assert all(torch.equal(value, DEVICES[3][key]) for key, value in by_cut[3].items())


def test_prefix_averages_each_unit_over_its_holders():
    by_cut = synchronised(DEVICES, CUTS, SAMPLES, "prefix")
    first = (10 * 1 + 10 * 4 + 20 * 10 + 40 * 20) / 80  # 13.125
    second = (10 * 4 + 20 * 10 + 40 * 20) / 70
    assert numbers(by_cut[1]) == {"units.0.weight": first, "units.0.tracked": 9, "exits.1.bias": 1}
    assert numbers(by_cut[2]) == {
        "units.0.weight": first, "units.1.weight": second, "units.0.tracked": 9, "exits.2.bias": 8,
    }  # fmt: skip
    assert numbers(by_cut[3]) == {
        "units.0.weight": first, "units.1.weight": second, "units.2.weight": 20, "units.0.tracked": 9,
        "exits.3.bias": 20,
    }  # fmt: skip


def test_synchronised_ignores_absent_clients():
    assert list(synchronised({3: DEVICES[3]}, CUTS, SAMPLES, "prefix")) == [3]

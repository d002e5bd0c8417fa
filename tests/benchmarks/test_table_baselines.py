from typing import Any

from benchmarks.tables.baselines import METHODS, REST, REST_METHODS, figures, over_eefl


def cell(variant: str, seed: int, first: float, last: float) -> dict[str, Any]:
    calibrated = {"accuracy": last, "mean_macs": 3.0}
    measured = {"exits": [first, last], "mean": (first + last) / 2, "calibrated": calibrated, "exit_macs": [1.0, 4.0]}
    return {"variant": variant, "point": {}, "seed": seed, "accuracy": measured, "device_seconds": 20.0 + seed}


def read(name: str) -> dict[str, Any]:
    """Return a study in which every method has the accuracies of EEFL, but FedAvg."""
    cells = [
        cell(method, seed, 0.1, 0.5 + seed / 50) if method == "fedavg" else cell(method, seed, 0.3, 0.4)
        for method in (REST_METHODS if name == REST else METHODS)
        for seed in (1, 2)
    ]
    return {"name": name, "cells": cells}


def test_method_of_one_exit_is_compared_at_that_exit() -> None:
    assert over_eefl(read, "fedavg") == "+13.00 (+0.29 to +25.71)"  # 12 and 14 points over the last exit's 40
    assert figures(read)["rest"].splitlines()[-1] == "| `fedavg` | | | - / - / - / 53.0 | +13.00 ± 1.41 | | 21.5 |"


def test_other_methods_are_compared_by_the_mean_of_exits() -> None:
    assert over_eefl(read, "median") == "+0.00 (+0.00 to +0.00)"
    first, second, *_ = figures(read)["rest"].splitlines()[2:]
    assert first == "| `eefl` | 35.00 ± 0.00 | | 30.0 / 40.0 | | 40.0 at 75 % | 21.5 |"
    assert second == "| `fedprox` | 35.00 ± 0.00 | +0.00 ± 0.00 | 30.0 / 40.0 | +0.00 ± 0.00 | 40.0 at 75 % | 21.5 |"

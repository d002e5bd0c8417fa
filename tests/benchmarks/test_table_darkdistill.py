from typing import Any

from benchmarks.tables.darkdistill import tokens


def cell(variant: str, seed: int, loss: float, distillation: float, variety: float) -> dict[str, Any]:
    terms = {
        "distillation": loss, "moved-clients": 0.5, "moved-distillation": distillation, "moved-decay": 0.05,
        "distill-1-2-variety": variety, "distill-2-3-variety": variety + 1, "generator-1-spearman": 0.9,
    }  # fmt: skip
    return {"variant": variant, "point": {}, "seed": seed, "terms": terms}


def test_movements_are_shares_of_the_clients_over_seeds() -> None:
    cells = [
        cell("published", 1, 0.001, 0.01, 2.0),
        cell("published", 2, 0.003, 0.02, 3.0),
        cell("darkdistill", 1, 0.01, 0.1, 4.0),
    ]
    _, _, published, bounded = tokens(lambda name: {"name": name, "cells": cells}).splitlines()
    assert published.split("|")[2:-1] == [" 0.0020 ± 0.0014 ", " 3.00 ± 1.41 ", " 10.00 ± 0.00 ", " 3.0 "]
    assert bounded.split("|")[2:-1] == [" 0.0100 ± 0.0000 ", " 20.00 ± 0.00 ", " 10.00 ± 0.00 ", " 4.5 "]

from typing import Any

from benchmarks.tables.cafedistill import FINETUNED, REST, by_seed, over_others


def cell(variant: str, seed: int, accuracy: float) -> dict[str, Any]:
    means = {"2": 0.1} | {str(round_): accuracy for round_ in range(4, 14, 2)}
    measured = {"exits": [accuracy, accuracy + 0.1], "mean": accuracy, "majority": 0.62, "accuracy_loss": 0.01}
    return {
        "variant": variant, "point": {}, "seed": seed, "run": variant, "accuracy": {}, "client_accuracy": measured,
        "means": means,
    }  # fmt: skip


def test_gains_are_over_the_same_seed() -> None:
    result = {
        "name": "some",
        "variants": {"fedper": {}, "fedrep": {}},
        "cells": [cell("fedper", 1, 0.7), cell("fedper", 2, 0.6), cell("fedrep", 2, 0.625)],
    }
    assert by_seed(result).splitlines()[2:] == [
        "| fedper | 1, 2 | 70.00 / 60.00 | | 65.0 / 75.0 | +3.0, within its reach |",
        "| fedrep | 2 | 62.50 | +2.50 | 62.5 / 72.5 | +0.5, within its reach |",
    ]


def test_other_methods_are_compared_with_fedper_of_their_machine() -> None:
    cells = [cell("fedper", seed, 0.6) for seed in (1, 2)] + [cell("ditto", 1, 0.61), cell("ditto", 2, 0.63)]
    cells.append(cell("fedbabu", 2, 0.55))  # left out: its seeds are in the other study
    rest = {"name": "personal_rest", "variants": {"fedper": {}, "ditto": {}, "fedbabu": {}}, "cells": cells}
    cells = [cell("fedper", seed, 0.7) for seed in (1, 2)] + [cell("fedbabu", 1, 0.64), cell("fedbabu", 2, 0.66)]
    tuned = {"name": "personal_finetuned", "variants": {"fedper": {}, "fedbabu": {}}, "cells": cells}
    assert over_others({REST: rest, FINETUNED: tuned}.__getitem__) == {
        "ditto": "+2.00 (-10.71 to +14.71)", "fedbabu": "-5.00 (-17.71 to +7.71)",
    }  # fmt: skip

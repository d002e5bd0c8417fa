"""Networks with fixed logits, so that every count can be checked by hand."""

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.data.clients import ClientData
from common.networks import NetworkSpec, build
from strategies.client_evaluation import THRESHOLDS, cheapest, check, score, summarise, thresholds

FULL = len(THRESHOLDS) - 1
MACS = (1.0, 4.0)
EACH = dict.fromkeys(range(100), MACS)


class Table(nn.Module):
    """Returns the logits of a table with two classes: row x of each exit."""

    def __init__(self, *confidences: list[float]) -> None:
        """One list per exit: probability of class 1 of each sample."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        shares = [torch.tensor(row, dtype=torch.float64) for row in confidences]
        self.logits = [torch.stack([(1 - p).log(), p.log()], 1).float() for p in shares]
        self.seen: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen.append((len(x), self.training, torch.is_inference_mode_enabled()))
        return [logits[x] for logits in self.logits]


def data(y: list[int], validation: int, test: int) -> ClientData:
    """Return data whose first `validation` samples are validation and whose next `test` samples are test."""
    x, labels = torch.arange(len(y)), torch.tensor(y)
    held_out, tested = slice(0, validation), slice(validation, validation + test)
    return ClientData(x[:0], labels[:0], x[held_out], labels[held_out], x[tested], labels[tested])


def two_exits() -> tuple[Table, ClientData]:
    """Return four validation and five test samples, all of class 1."""
    validation = [0.97, 0.82, 0.38, 0.57], [0.99, 0.99, 0.90, 0.45]
    test = [0.96, 0.18, 0.72, 0.52, 0.04], [0.97, 0.60, 0.80, 0.30, 0.70]
    return Table(validation[0] + test[0], validation[1] + test[1]), data([1] * 9, 4, 5)


def scored(accuracy_loss: float = 0.0) -> dict[str, np.ndarray]:
    network, own = two_exits()
    return score(network, own, MACS, accuracy_loss)  # type: ignore[arg-type]


def at(threshold: float) -> int:
    return THRESHOLDS.index(threshold)


def test_last_threshold_is_full_network() -> None:
    assert list(THRESHOLDS) == [*(n / 20 for n in range(10, 20)), math.inf]
    assert list(thresholds("entropy")) == [*(n / 20 for n in range(20)), math.inf]


def test_counts_match_hand_count() -> None:
    found = scored()
    assert found["exits"].tolist() == [3, 4]
    assert found["examples"].tolist() == [4, 5]
    assert found["own_test"].tolist() == [1]
    assert found["majority"].tolist() == [5]  # all samples are of one class
    validation, test = found["sweep"]
    # two classes: at 0.5 every sample leaves at the first exit
    assert validation[at(0.5)].tolist() == [[4, 3], [0, 0]]
    assert validation[at(0.6)].tolist() == [[3, 2], [1, 0]]  # 0.97, 0.82 and 0.62 for the wrong class leave
    assert validation[at(0.65)].tolist() == [[2, 2], [2, 1]]
    assert validation[at(0.85)].tolist() == [[1, 1], [3, 2]]
    assert validation[FULL].tolist() == [[0, 0], [4, 3]]
    assert test[at(0.5)].tolist() == [[5, 3], [0, 0]]
    assert test[at(0.75)].tolist() == [[3, 1], [2, 1]]  # 0.96, and 0.82 and 0.96 for the wrong class leave
    assert test[at(0.85)].tolist() == [[2, 1], [3, 2]]
    assert test[FULL].tolist() == [[0, 0], [5, 4]]


def test_threshold_is_cheapest_within_allowed_validation_loss() -> None:
    # the full network has 3 of 4; 0.5 and 0.55 have 3 of 4 with all at the first exit; the higher one is taken
    assert scored()["threshold"].tolist() == [0.55]
    network, own = two_exits()
    own.validation_y[3] = 0  # now the last exit has 4 of 4, the first 2 of 4
    found = score(network, own, MACS, 0.0)  # type: ignore[arg-type]
    assert found["threshold"].tolist() == [0.8]  # 0.97 and 0.82 leave, as at 0.65: equally cheap and right
    assert found["tuned"].tolist() == found["sweep"][1, at(0.8)].tolist() == [[3, 1], [2, 1]]
    lax = score(network, own, MACS, 0.25)  # type: ignore[arg-type]
    assert lax["threshold"].tolist() == [0.6]  # 3 of 4 are enough
    assert found["tuned"].dtype == found["sweep"].dtype == found["exits"].dtype == np.int64


def test_threshold_ignores_test_samples() -> None:
    network, own = two_exits()
    before = score(network, own, MACS, 0.0)  # type: ignore[arg-type]
    own.test_y[:] = 0
    after = score(network, own, MACS, 0.0)  # type: ignore[arg-type]
    assert after["exits"].tolist() == [2, 1]
    assert after["threshold"] == before["threshold"]
    assert (after["sweep"][0] == before["sweep"][0]).all()


def test_validation_samples_replace_missing_test_samples() -> None:
    network, _ = two_exits()
    found = score(network, data([1] * 4, 4, 0), MACS, 0.0)  # type: ignore[arg-type]
    assert found["own_test"].tolist() == [0]
    assert found["examples"].tolist() == [4, 4]
    assert found["exits"].tolist() == [3, 3]
    assert (found["sweep"][0] == found["sweep"][1]).all()
    check(found, 2)


def test_no_validation_samples_means_last_exit() -> None:
    network, _ = two_exits()
    found = score(network, data([1] * 3, 0, 3), MACS, 0.5)  # type: ignore[arg-type]
    assert found["threshold"].tolist() == [math.inf]
    assert found["tuned"].tolist() == [[0, 0], [3, 3]]
    assert found["sweep"][0].sum() == 0
    check(found, 2)


def test_no_samples_give_no_result() -> None:
    network, _ = two_exits()
    assert score(network, data([], 0, 0), MACS, 0.0) == {}  # type: ignore[arg-type]
    assert network.seen == []


def test_scoring_uses_batches_and_keeps_network_unchanged() -> None:
    network = Table([0.9] * 700)
    network.train()
    score(network, data([1] * 700, 400, 300), (1.0,), 0.0)  # type: ignore[arg-type]
    assert network.seen == [(n, False, True) for n in (256, 144, 256, 44)]
    assert network.training


def test_single_exit_needs_no_threshold() -> None:
    found = score(Table([0.9, 0.9, 0.2]), data([1] * 3, 1, 2), (7.0,), 0.5)  # type: ignore[arg-type]
    assert found["threshold"].tolist() == [math.inf]
    assert found["tuned"].tolist() == [[2, 1]]


def test_scores_match_network_inference() -> None:
    network = build(NetworkSpec("lenet", 10, (1, 8, 8)), seed=1)
    x, y = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 10
    own = ClientData(x[:0], y[:0], x[:30], y[:30], x[30:], y[30:])
    found = score(network, own, (1.0, 2.0, 3.0), 1.0)
    check(found, 3)
    answer = network.eval().infer(x[30:], lambda _, logits: logits.softmax(1).amax(1) >= found["threshold"][0])
    assert found["tuned"][:, 0].tolist() == torch.bincount(answer.exits, minlength=3).tolist()
    assert found["tuned"][:, 1].sum() == int((answer.logits.argmax(1) == y[30:]).sum())


def test_cheapest() -> None:
    costs, accuracies = np.array([1.0, 2.0, 2.0, 2.0, 4.0]), np.array([0.5, 0.7, 0.8, 0.8, 0.9])
    assert cheapest(costs, accuracies, 0.0) == 4
    assert cheapest(costs, accuracies, 0.1) == 3  # 0.9 - 0.8 is a little more than 0.1 in floating point
    assert cheapest(costs, accuracies, 0.2) == 3  # not 1: as cheap, less accurate
    assert cheapest(costs, accuracies, 0.4) == 0


def client(*exits: int, validation: list[int], test: list[int], threshold: float, own_test: int = 1) -> dict:
    """Return a client with ten samples per split: below 0.7 all leave at the first exit, from 0.7 on at the last.

    `validation` and `test`: how many are correct at the first and at the last exit.
    """
    sweep = np.zeros((2, len(THRESHOLDS), len(exits), 2), dtype=np.int64)
    for split, (first, last) in enumerate((validation, test)):
        sweep[split, : at(0.7), 0] = 10, first
        sweep[split, at(0.7) :, -1] = 10, last
    return {
        "exits": np.array(exits), "examples": np.array([10, 10]), "sweep": sweep,
        "tuned": sweep[1, at(threshold)], "threshold": np.array([threshold]), "own_test": np.array([own_test]),
        "majority": np.array([1]),
    }  # fmt: skip


def three() -> dict[int, dict]:
    """Return two clients with two exits and one with the first exit only."""
    alone = client(9, validation=[8, 8], test=[9, 9], threshold=math.inf)
    alone["sweep"][:, :, 0] = [[[10, 8]] * (FULL + 1), [[10, 9]] * (FULL + 1)]
    return {
        7: client(2, 6, validation=[4, 6], test=[2, 6], threshold=math.inf),
        3: client(6, 8, validation=[8, 8], test=[6, 8], threshold=0.65),
        5: alone | {"tuned": alone["sweep"][1, FULL]},
    }


def test_means_and_spreads_over_clients_match_hand_count() -> None:
    found = summarise(three(), {3, 5}, EACH, 0.01)
    assert found["clients"] == 3
    assert found["exits"] == pytest.approx([(0.2 + 0.6 + 0.9) / 3, 0.7])  # the last exit is that of two clients
    assert found["spread"] == pytest.approx([float(np.std([0.2, 0.6, 0.9])), 0.1])
    assert found["mean"] == pytest.approx((0.4 + 0.7 + 0.9) / 3)
    assert found["mean_spread"] == pytest.approx(float(np.std([0.4, 0.7, 0.9])))
    assert found["sampled"] == {
        "clients": 2,
        "exits": pytest.approx([0.75, 0.8]),
        "spread": pytest.approx([0.15, 0.0]),
        "mean": pytest.approx(0.8),
        "mean_spread": pytest.approx(0.1),
    }
    assert (found["own_test"], found["without_test"]) == (True, 0)
    assert (found["exit_macs"], found["accuracy_loss"]) == ([1.0, 4.0], 0.01)


def test_curve_and_operating_points_match_hand_count() -> None:
    found = summarise(three(), (), EACH, 0.1)
    assert [point["threshold"] for point in found["curve"]] == [*THRESHOLDS[:-1], None]
    cheap, full = found["curve"][0], found["curve"][-1]
    assert cheap == {
        "threshold": 0.5,
        "accuracy": pytest.approx((0.2 + 0.6 + 0.9) / 3),
        "spread": pytest.approx(float(np.std([0.2, 0.6, 0.9]))),
        "mean_macs": 1.0,
        "share": pytest.approx((0.25 + 0.25 + 1.0) / 3),  # the first exit is the whole network of client 5
        "saved": pytest.approx(0.5),
        "exit_histogram": [30, 0],
    }
    assert (full["mean_macs"], full["share"], full["saved"]) == (pytest.approx(3.0), 1.0, 0.0)
    tuned = found["tuned"]  # clients 5 and 7 at their last exit, 3 at its first
    assert tuned["accuracy"] == pytest.approx((0.6 + 0.6 + 0.9) / 3)
    assert tuned["full_accuracy"] == pytest.approx((0.6 + 0.8 + 0.9) / 3)
    assert tuned["mean_macs"] == pytest.approx((4 + 1 + 1) / 3)
    assert tuned["saved"] == pytest.approx((0 + 0.75 + 0) / 3)
    assert tuned["exit_histogram"] == [20, 10]
    # on validation 0.65 loses (0.6 + 0.8 + 0.8 - 0.4 - 0.8 - 0.8) / 3 = 0.067, so it is allowed
    assert found["common"] == found["curve"][at(0.65)] | {"full_accuracy": tuned["full_accuracy"]}
    assert summarise(three(), (), EACH, 0.05)["common"]["threshold"] is None
    assert found["sampled"] == {}


def test_common_threshold_ignores_clients_without_validation() -> None:
    scores = three()
    scores[7]["sweep"][0] = 0
    scores[7]["examples"][0] = 0
    assert summarise(scores, (), EACH, 0.0)["common"]["threshold"] == 0.65
    for arrays in scores.values():
        arrays["sweep"][0] = 0
        arrays["examples"][0] = 0
    assert summarise(scores, (), EACH, 0.0)["common"]["threshold"] is None


def test_client_order_changes_no_bit() -> None:
    source = random.Random(1)
    scores = {}
    for number in range(40):
        values = [source.randint(0, 10) for _ in range(6)]
        scores[number] = client(*values[:2], validation=values[2:4], test=values[4:], threshold=0.65)
    expected = json.dumps(summarise(scores, range(20), dict.fromkeys(range(100), (1.1, 3.7)), 0.01), allow_nan=False)
    for _ in range(5):
        mixed = list(scores)
        source.shuffle(mixed)
        again = summarise(
            {n: scores[n] for n in mixed}, set(mixed) & set(range(20)), dict.fromkeys(range(100), (1.1, 3.7)), 0.01
        )
        assert json.dumps(again) == expected


def test_clients_without_samples_are_skipped() -> None:
    assert summarise({**three(), 1: {}}, {1}, EACH, 0.0) == summarise(three(), (), EACH, 0.0)
    assert summarise({1: {}}, (), EACH, 0.0) == summarise({}, (), EACH, 0.0) == {}


def test_clients_measured_on_validation_samples_are_counted() -> None:
    scores = three()
    scores[3]["own_test"][0] = 0
    found = summarise(scores, (), EACH, 0.0)
    assert (found["own_test"], found["without_test"]) == (False, 1)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sweep", None),
        ("exits", None),
        ("sweep", np.zeros(3, dtype=np.int64)),
        ("sweep", np.zeros((2, FULL + 1, 0, 2), dtype=np.int64)),
        ("sweep", np.zeros((2, FULL + 1, 3, 2), dtype=np.int64)),
        ("sweep", np.zeros((2, FULL, 2, 2), dtype=np.int64)),
        ("sweep", np.zeros((2, FULL + 1, 2, 2), dtype=np.int64)),
        ("exits", np.array([1, 2, 3])),
        ("exits", np.array([1.0, 2.0])),
        ("exits", np.array([1, 11])),
        ("exits", np.array([-1, 2])),
        ("examples", np.array([10, 9])),
        ("examples", np.array([9, 10])),
        ("tuned", np.array([[10, 5], [0, 0]])),
        ("threshold", np.array([0.61])),
        ("threshold", np.array([math.nan])),
        ("own_test", np.array([2])),
        ("majority", np.array([11])),
        ("majority", None),
    ],
)
def test_malformed_arrays_are_rejected(name: str, wrong: np.ndarray | None) -> None:
    arrays = three()[3]
    check(arrays, 2)
    arrays = {k: v for k, v in (arrays | {name: wrong}).items() if v is not None}
    with pytest.raises(ValueError, match="client evaluation"):
        check(arrays, 2)


def test_more_correct_samples_than_exited_are_rejected() -> None:
    arrays = three()[3]
    arrays["sweep"][0, 0, 0] = 10, 11
    with pytest.raises(ValueError, match="do not add up"):
        check(arrays, 2)


def test_entropy_criterion_exits_low_entropy_samples() -> None:
    network, own = two_exits()
    found = score(network, own, MACS, 0.0, "entropy")  # type: ignore[arg-type]
    check(found, 2, "entropy")
    # of two classes at 0.97, 0.82, 0.62 and 0.57, 1 - H / log 2 is 0.806, 0.320, 0.042 and 0.014
    tried = thresholds("entropy")
    validation = found["sweep"][0]
    assert validation[tried.index(0.0)].tolist() == [[4, 3], [0, 0]]
    assert validation[tried.index(0.05)].tolist() == [[2, 2], [2, 1]]
    assert validation[tried.index(0.3)].tolist() == [[2, 2], [2, 1]]
    assert validation[tried.index(0.35)].tolist() == [[1, 1], [3, 2]]
    assert validation[tried.index(0.8)].tolist() == [[1, 1], [3, 2]]
    assert validation[tried.index(0.85)].tolist() == [[0, 0], [4, 3]]
    assert found["threshold"].tolist() == [0.0]  # the first exit alone is as right as the full network
    with pytest.raises(ValueError, match="sweep"):
        check(found, 2)
    summary = summarise({0: found}, (), {0: MACS}, 0.0, "entropy")
    assert [point["threshold"] for point in summary["curve"]] == [*tried[:-1], None]
    assert summary["common"]["threshold"] == 0.0

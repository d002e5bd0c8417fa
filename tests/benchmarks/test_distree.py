import pytest
import torch

from benchmarks.distree import draws, point, pooled, study
from strategies.distree.exits.calibration import Answers, with_gates
from strategies.distree.exits.classifier import ColumnBlocks, OwnHeads
from strategies.distree.exits.policies import LastExit, Random

COSTS = (1.0, 19.0, 37.0, 51.0, 69.0, 82.0, 100.0)


def answers(samples: int, seed: int) -> Answers:
    """Return two students of three exits, each better than the one before."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (samples,), generator=generator)
    truth = torch.nn.functional.one_hot(labels, 3).float()
    features = {
        k: torch.stack([j * truth + torch.rand(samples, 3, generator=generator) * 6 for j in (1, 2, 3)]) for k in (1, 2)
    }
    classifier, own = ColumnBlocks({1: 3, 2: 3}, 3, 3, seed=0), OwnHeads({1: 3, 2: 3}, 3, 3)
    for heads in (*classifier.blocks.values(), *own.weights.values()):
        heads.data = torch.eye(3).repeat(3, 1, 1)
    classifier.bias.data.zero_()
    return Answers(features, labels, classifier, own, {1: (0.5, 1.0, 4.0), 2: (0.5, 1.0, 4.0)})


@pytest.mark.parametrize("cost", [60.0, 72.4, 80.0])
def test_all_draws_have_requested_cost(cost: float) -> None:
    found = list(draws(cost, COSTS))
    assert len(set(found)) == len(found) > 100
    assert all(min(shares) >= 0 and shares[0] == 0 for shares in found)
    for shares in found:
        mean = sum(share * own for share, own in zip(shares, COSTS, strict=True)) / sum(shares)
        assert mean == pytest.approx(cost)


def test_point_counts_what_is_lost_and_gained() -> None:
    test = answers(400, 3)
    first = point({k: Random((1.0, 0.0, 0.0)) for k in (1, 2)}, test, 8.0)
    last = point({k: LastExit(3) for k in (1, 2)}, test, 8.0)
    assert (first["saved"], last["saved"]) == (0.875, 0.0)
    assert last["last_right_exit_wrong"] == last["exit_right_last_wrong"] == 0
    lost, gained = first["last_right_exit_wrong"], first["exit_right_last_wrong"]
    assert last["accuracy"] - first["accuracy"] == pytest.approx(lost - gained)
    assert first["histogram"] == {1: [400, 0, 0], 2: [400, 0, 0]}


def test_gains_are_paired_by_image_at_equal_cost() -> None:
    def asked(gate: list[float], macs: float) -> dict[str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        rights = {"difference": ([1.0, 0, 1, 0], 8.0), "gate": (gate, macs), "last": ([1.0, 1, 1, 1], 10.0)}
        return {"0.2": {name: (torch.tensor(right), torch.full((4,), cost)) for name, (right, cost) in rights.items()}}

    found = pooled([asked([1, 1, 1, 0], 8.0), asked([0, 0, 0, 0], 6.0)])["0.2"]
    # the second gate saves twice as much as wanted: half of the images go to the last exit instead
    assert found["gate"]["saved_before"] == pytest.approx([0.2, 0.4])
    assert found["gate"]["accuracy"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    # gains 0, 1, 0, 0 and -1/2, 1/2, -1/2, 1/2: together -1/4, 3/4, -1/4, 1/4
    assert found["gate"]["each"][0] == pytest.approx((1 / 4, 3**0.5 / 8))
    assert found["gate"]["each"][1] == pytest.approx((0, 1 / 4))
    assert found["gate"]["gain"] == pytest.approx((1 / 8, (11 / 64) ** 0.5 / 2))
    assert set(found) == {"difference", "gate"}


@pytest.mark.slow
def test_study_has_every_rule_at_every_saving() -> None:
    found, answered = study(with_gates(answers(300, 1)), answers(200, 2))
    rules = {"own-head", "entropy", "difference", "neighbour", "gate", "random"}
    assert {name: set(at) for name, at in found["at_saving"].items()} == dict.fromkeys(
        ("0.2", "0.276", "0.4", "0.6"), rules
    )
    for images, number in (("validation", 300), ("test", 200)):
        assert {len(right) for asked in answered[images].values() for right, _ in asked.values()} == {number}
        assert {name: set(pooled([answered[images]])[name]) for name in ("0.2", "0.6")} == {"0.2": rules, "0.6": rules}
    assert found["calibrated"]["bound"]["own-head"]["saved"] <= found["calibrated"]["mean"]["own-head"]["saved"]
    unseen = found["calibrated_unseen"]["bound"]
    assert set(unseen) == rules - {"random"}
    assert unseen["gate"].keys() == {"saved", "accuracy", "last_right_exit_wrong", "exit_right_last_wrong"}
    assert found["oracle"]["accuracy"] >= max(found["exits"]["test"])
    assert len(found["rank_area"]["test"]["gate"]["1"]) == 1
    assert "published" not in found

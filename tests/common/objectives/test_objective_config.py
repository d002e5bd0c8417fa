import math

import pytest
import torch

from common.errors import UserError
from common.objectives import Boosted, Joint, LearnedWeights, ObjectiveConfig, make_objective


def test_defaults_are_fine_and_sourced_numbers_are_pinned() -> None:
    config = ObjectiveConfig()
    assert config.problems() == []
    assert (config.l2w_hidden, config.l2w_lr, config.l2w_weight_decay) == (500, 1e-3, 1e-4)
    assert (config.l2w_strength, config.l2w_interval, config.l2w_p) == (0.8, 10, 30.0)


def test_every_name_makes_its_objective() -> None:
    assert make_objective(ObjectiveConfig("joint"), 3, seed=0) == Joint()
    assert make_objective(ObjectiveConfig("boosted"), 3, seed=0) == Boosted("boost")
    assert make_objective(ObjectiveConfig("boosted", legacy_boost=True), 3, seed=0) == Boosted("legacy")
    assert isinstance(make_objective(ObjectiveConfig("l2w"), 3, seed=0), LearnedWeights)


def test_only_boosted_needs_an_ensemble() -> None:
    assert [ObjectiveConfig(name).ensemble for name in ("joint", "boosted", "l2w")] == [0.0, 0.2, 0.0]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (ObjectiveConfig("bosted"), "bosted"),
        (ObjectiveConfig(exit_weights=(1.0, -1.0)), "exit weights"),
        (ObjectiveConfig(exit_weights=(math.nan,)), "exit weights"),
        (ObjectiveConfig(exit_weights=(0.0, 0.0)), "above 0"),
        (ObjectiveConfig(l2w_hidden=0), "hidden"),
        (ObjectiveConfig(l2w_interval=0), "interval"),
        (ObjectiveConfig(l2w_lr=0.0), "learning rate"),
        (ObjectiveConfig(l2w_weight_decay=-1.0), "weight decay"),
        (ObjectiveConfig(l2w_strength=1.5), "strength"),
        (ObjectiveConfig(l2w_p=0.0), "l2w p"),
    ],
)
def test_problems_are_named_and_refused(config: ObjectiveConfig, word: str) -> None:
    assert len(config.problems()) == 1
    assert word in config.problems()[0]
    with pytest.raises(UserError, match=word):
        make_objective(config, 1, seed=0)


def test_too_few_exit_weights_are_refused() -> None:
    with pytest.raises(UserError, match="2 exit weights are given for 3 exits"):
        make_objective(ObjectiveConfig(exit_weights=(1.0, 2.0)), 3, seed=0)


@pytest.mark.parametrize("name", ["joint", "boosted"])
def test_stateless_objectives_keep_nothing(name: str) -> None:
    objective = make_objective(ObjectiveConfig(name), 2, seed=0)
    assert objective.state_dict() == {}
    objective.load_state_dict({})
    with pytest.raises(UserError):
        objective.load_state_dict({"batches": torch.tensor(1)})

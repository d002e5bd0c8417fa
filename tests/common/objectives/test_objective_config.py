import math
import re

import pytest
import torch
from pydantic import ValidationError

from common.errors import UserError
from common.objectives import Boosted, Joint, LearnedWeights, ObjectiveConfig, make_objective
from common.settings import read_section


def test_defaults_are_valid_and_match_their_sources() -> None:
    config = ObjectiveConfig()
    assert (config.l2w_hidden, config.l2w_lr, config.l2w_weight_decay) == (500, 1e-3, 1e-4)
    assert (config.l2w_strength, config.l2w_interval, config.l2w_p) == (0.8, 10, 30.0)


def test_each_name_makes_its_objective() -> None:
    assert make_objective(ObjectiveConfig(name="joint"), 3, seed=0) == Joint()
    assert make_objective(ObjectiveConfig(name="boosted"), 3, seed=0) == Boosted("boost")
    assert make_objective(ObjectiveConfig(name="boosted", legacy_boost=True), 3, seed=0) == Boosted("legacy")
    assert isinstance(make_objective(ObjectiveConfig(name="l2w"), 3, seed=0), LearnedWeights)


def test_only_boosted_needs_an_ensemble() -> None:
    assert [ObjectiveConfig(name=name).ensemble for name in ("joint", "boosted", "l2w")] == [0.0, 0.2, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "bosted"}, "objective.name is 'bosted', must be one of joint, boosted, l2w"),
        ({"exit_weights": (1.0, -1.0)}, "objective.exit-weights is 1.0,-1.0"),
        ({"exit_weights": (math.nan,)}, "objective.exit-weights is nan, must be finite numbers"),
        ({"exit_weights": (0.0, 0.0)}, "objective.exit-weights is 0.0,0.0, at least one .* above 0"),
        ({"l2w_hidden": 0}, "objective.l2w-hidden"),
        ({"l2w_interval": 0}, "objective.l2w-interval"),
        ({"l2w_lr": 0.0}, "objective.l2w-lr"),
        ({"l2w_weight_decay": -1.0}, "objective.l2w-weight-decay"),
        ({"l2w_strength": 1.5}, "objective.l2w-strength"),
        ({"l2w_p": 0.0}, "objective.l2w-p"),
    ],
)
def test_each_problem_names_its_key_and_is_refused(values: dict[str, object], message: str) -> None:
    (problem,) = read_section(ObjectiveConfig, **values).problems
    assert re.search(message, problem)
    with pytest.raises(ValidationError):
        ObjectiveConfig(**values)


def test_too_few_exit_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"exit-weights is 1\.0,2\.0, but the network has 3 exits: give one each"):
        make_objective(ObjectiveConfig(exit_weights=(1.0, 2.0)), 3, seed=0)


@pytest.mark.parametrize("name", ["joint", "boosted"])
def test_stateless_objectives_keep_nothing(name: str) -> None:
    objective = make_objective(ObjectiveConfig(name=name), 2, seed=0)
    assert objective.state_dict() == {}
    objective.load_state_dict({})
    with pytest.raises(UserError):
        objective.load_state_dict({"batches": torch.tensor(1)})

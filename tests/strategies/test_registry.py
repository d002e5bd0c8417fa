import pytest

from common.config import RunConfig, load_config
from common.errors import UserError
from common.objectives import ObjectiveConfig
from strategies.engine.strategy import EarlyExitStrategy
from strategies.registry import MODULES, SECTIONS, method, sections

OWN_LOSS = ("cafedistill", "depthfl", "distree", "fedavg", "hetero_splitee")  # the run's objective does not apply


@pytest.mark.parametrize("name", MODULES)
def test_every_method_has_its_halves_under_its_name(name):
    found = method(name)
    assert issubclass(found.strategy, EarlyExitStrategy)
    assert found.strategy.name == name
    local = found.local()
    assert all(callable(getattr(local, step)) for step in ("load", "steps", "personalise", "network"))
    assert found.parts.word in ("depth", "cut", "student")
    assert found.ensemble(RunConfig()) == 0.0


@pytest.mark.parametrize("name", MODULES)
def test_the_ensemble_follows_the_objective_where_it_applies(name):
    config = RunConfig(objective=ObjectiveConfig(name="boosted"))
    assert method(name).ensemble(config) == (0.0 if name in OWN_LOSS else 0.2)


def test_an_unknown_method_is_told_with_the_known_ones():
    with pytest.raises(UserError, match=r"run\.strategy 'fedsgd' is unknown: choose one of cafedistill, darkdistill"):
        method("fedsgd")


def test_every_section_has_defaults_without_problems_and_travels():
    assert {kind.SECTION for kind in sections()} == set(SECTIONS)
    config = load_config({}, sections())
    assert load_config(config.flat(), sections()) == config
    assert all(cls().problems() == [] for cls in sections())

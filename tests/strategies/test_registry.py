import subprocess
import sys

import pytest

from common.config import RunConfig, load_config
from common.errors import UserError
from common.objectives import ObjectiveConfig
from common.settings import read_section
from strategies.engine.strategy import EarlyExitStrategy
from strategies.registry import METHODS, all_settings, find_method

OWN_LOSS = (
    "cafedistill",
    "depthfl",
    "distree",
    "fedavg",
    "hetero_splitee",
    "reefl",
)  # the run's objective does not apply


@pytest.mark.parametrize("name", METHODS)
def test_every_method_card_has_name_and_both_halves(name):
    card = find_method(name)
    assert isinstance(card.strategy, type)
    assert issubclass(card.strategy, EarlyExitStrategy)
    assert card.name == name
    local = card.local()
    assert all(callable(getattr(local, step)) for step in ("load", "steps", "personalise", "network", "store"))
    assert card.parts.word in ("depth", "cut", "student")
    assert card.ensemble(RunConfig()) == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_ensemble_follows_objective_where_it_applies(name):
    config = RunConfig(objective=ObjectiveConfig(name="boosted"))
    assert find_method(name).ensemble(config) == (0.0 if name in OWN_LOSS else 0.2)


def test_unknown_method_is_refused_and_known_ones_listed():
    with pytest.raises(
        UserError, match=r"run\.strategy is 'fedsgd', must be one of cafedistill, darkdistill, .*; do you mean fedavg\?"
    ):
        find_method("fedsgd")


def test_finding_method_imports_no_other_method():
    script = (
        "import sys; from strategies.registry import METHODS, find_method; find_method('fedprox'); "
        "print(sorted(entry.card for entry in METHODS.values() if entry.card in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['strategies.baselines.fedprox']"


def test_every_section_has_valid_defaults_and_round_trips():
    names = [kind.SECTION for kind in all_settings()]
    assert len(set(names)) == len(names)
    assert {"robust", "personal", "difficulty", "stream"} < set(names)
    config = load_config({}, all_settings())
    assert load_config(config.flat(), all_settings()) == config
    assert all(read_section(kind).problems == [] for kind in all_settings())


@pytest.mark.parametrize("name", METHODS)
def test_sent_configuration_has_only_own_method_sections(name):
    config, card = load_config({"run.strategy": name}, all_settings()), find_method(name)
    sent = config.only(card.settings)
    assert load_config(sent.flat(), card.settings) == sent
    assert {kind.SECTION for kind in sent.settings} == {kind.SECTION for kind in card.settings}


def test_access_to_unread_section_is_an_error():
    kind = all_settings()[0]
    with pytest.raises(LookupError, match=f"section '{kind.SECTION}' was not read: list {kind.__name__} on the"):
        RunConfig().of(kind)

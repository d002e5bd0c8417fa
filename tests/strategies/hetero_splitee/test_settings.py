import pytest

from common.config import TrainSection, load_config
from common.errors import UserError
from common.settings import read_section
from strategies.hetero_splitee.learner import Sgd
from strategies.hetero_splitee.settings import SplitEESettings


def test_problems_accept_the_defaults():
    assert read_section(SplitEESettings).problems == []
    assert load_config({}, [SplitEESettings]).of(SplitEESettings) == SplitEESettings()


@pytest.mark.parametrize(
    "possible",
    [
        {"mode": "averaging", "aggregate_scope": "global", "vectorise": "always"},
        {"granularity": "epoch", "client_sync": "prefix", "statistics": "shared"},
        {"mode": "averaging", "statistics": "own"},
        {"mode": "averaging", "client_sync": "none", "period": 2},
        {"client_sync": "same_cut", "period": 2},
        {"turns": "shuffled", "server_lr": 0.1, "prior": "own"},
        {"mode": "averaging", "gradient": "return", "prior": "own", "vectorise": "always"},
        {"gradient": "return", "coding": "fp16", "exit_weight": 0.3},
    ],
)
def test_problems_accept_possible_combinations(possible):
    assert read_section(SplitEESettings, **possible).problems == []


@pytest.mark.parametrize(
    ("wrong", "start"),
    [
        ({"mode": "parallel"}, "splitee.mode is 'parallel'"),
        ({"statistics": "client"}, "splitee.statistics is 'client'"),
        ({"prior": "shared"}, "splitee.prior is 'shared'"),
        ({"turns": "drawn"}, "splitee.turns is 'drawn'"),
        ({"mode": "averaging", "turns": "shuffled"}, 'splitee.turns "shuffled" needs splitee.mode'),
        ({"granularity": "epoch", "turns": "shuffled"}, 'splitee.turns "shuffled" needs splitee.granularity'),
        ({"period": 0}, "splitee.period is 0"),
        ({"client_sync": "none", "period": 2}, "splitee.period needs"),
        ({"server_lr": -0.1}, "splitee.server-lr"),
        ({"aggregate_scope": "global"}, "splitee.aggregate-scope"),
        ({"vectorise": "always"}, "splitee.vectorise"),
        ({"mode": "averaging", "granularity": "epoch"}, "splitee.granularity"),
        ({"mode": "averaging", "aggregate_scope": "global", "client_sync": "prefix"}, "splitee.aggregate-scope"),
        ({"gradient": "return", "coding": "uint8"}, "splitee.gradient"),
        ({"exit_weight": 0.1}, "splitee.exit-weight"),
        ({"cuts": (0, 2)}, "splitee.cuts is 0,2, must rise and start at 1 or more"),
    ],
)
def test_problems_list_each_mistake_once(wrong, start):
    problems = read_section(SplitEESettings, **wrong).problems
    assert len(problems) == 1
    assert problems[0].startswith(start)


def test_load_config_rejects_an_impossible_combination():
    with pytest.raises(UserError, match=r'needs splitee\.mode "averaging"'):
        load_config({"splitee.aggregate-scope": "global"}, [SplitEESettings])


@pytest.mark.parametrize(
    ("chosen", "decided"),
    [
        ({}, ("server", "prefix")),
        ({"client_sync": "none"}, ("server", "none")),
        ({"mode": "averaging"}, ("global", "none")),
        ({"mode": "averaging", "client_sync": "none"}, ("global", "none")),
        ({"mode": "averaging", "client_sync": "same_cut"}, ("server", "same_cut")),
        ({"mode": "averaging", "aggregate_scope": "server"}, ("server", "none")),
        ({"aggregate_scope": "server", "client_sync": "same_cut"}, ("server", "same_cut")),
    ],
)
def test_what_is_averaged_by_default_depends_on_the_mode(chosen, decided):
    settings = SplitEESettings(**chosen)
    assert (settings.scope, settings.sync) == decided
    assert read_section(SplitEESettings, **chosen).problems == []


def test_optimiser_defaults_to_the_train_section():
    train = TrainSection(lr=0.1, lr_decay=0.5, momentum=0.8, weight_decay=0.01)
    assert Sgd.of_round(SplitEESettings(), train, 1) == Sgd(0.1, 0.8, 0.01)
    assert Sgd.of_round(SplitEESettings(server_lr=0.4), train, 3) == Sgd(0.1, 0.8, 0.01)


def test_aggregates_counts_rounds_from_one():
    assert [round_ for round_ in range(1, 8) if SplitEESettings(period=3).aggregates(round_)] == [3, 6]

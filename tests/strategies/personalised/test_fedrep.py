"""FedRep: train the heads on a fixed backbone, then the backbone under fixed heads."""

import pytest
import torch

from common.messages.protocol import ClientReport
from common.settings import read_section
from strategies.method import Effort
from strategies.personalised.base import backbone
from strategies.personalised.fedrep import FedRepLocal, FedRepSettings
from tests.support.personal_runs import DEEP, Recorder, close, heads, make_job, same, seeded, sgd, trunk

FEDREP = {"run.strategy": "fedrep", "fedrep.head-epochs": 3, "train.epochs": 2}


@pytest.fixture
def strategy(prepare_run):
    return prepare_run({**FEDREP, **DEEP}).strategy


def test_only_backbone_is_sent(run_strategy):
    app = Recorder()
    run = run_strategy(FEDREP, app=app)
    assert app.down() == app.up() == set(trunk(run.strategy.model))


def test_each_phase_changes_only_its_part(strategy, monkeypatch):
    phases = []
    fit = FedRepLocal.fit

    def watched(self, job, objective, leaf, epochs, purpose="batches"):
        before = job.model.read(job.model.layout).state_dict()
        loss = fit(self, job, objective, leaf, epochs, purpose)
        after = job.model.read(job.model.layout).state_dict()
        phases.append((purpose, epochs, {key for key in after if not torch.equal(before[key], after[key])}))
        return loss

    monkeypatch.setattr(FedRepLocal, "fit", watched)
    FedRepLocal().train(make_job(strategy, 1))
    everything = seeded(strategy)
    assert phases == [("heads", 3, set(heads(everything))), ("batches", 2, set(trunk(everything)))]


def test_round_matches_hand_computation(strategy):
    job = make_job(strategy, 1)
    outcome = FedRepLocal().train(job)
    network = strategy.network
    sgd(strategy, network, 1, 1, 3, "heads", part="exits.")
    sgd(strategy, network, 1, 1, 2, "batches", part="units.")
    expected = network.state_dict()
    assert close(outcome.state.state_dict(), trunk(expected))
    own = {key.removeprefix("own."): value for key, value in outcome.kept.tensors.items()}
    assert close(own, heads(expected))


def test_zero_head_epochs_leave_heads_unchanged(prepare_run):
    strategy = prepare_run({**FEDREP, **DEEP, "fedrep.head-epochs": 0}).strategy
    outcome = FedRepLocal().train(make_job(strategy, 1))
    own = {key.removeprefix("own."): value for key, value in outcome.kept.tensors.items()}
    assert same(own, heads(seeded(strategy)))


def test_stored_head_is_trained_further(strategy):
    first = FedRepLocal().train(make_job(strategy, 1))
    job = make_job(strategy, 1, 2, kept=first.kept)
    FedRepLocal().load(job, first.state)
    state = job.model.read(job.model.layout).state_dict()
    assert same(trunk(state), first.state.state_dict())
    assert same({f"own.{key}": value for key, value in heads(state).items()}, first.kept.tensors)


def test_invalid_settings_are_reported(strategy):
    assert read_section(FedRepSettings, head_epochs=-1).problems == ["fedrep.head-epochs is -1, must be at least 0"]
    assert read_section(FedRepSettings).problems == []
    assert backbone(strategy.config, "units.0.0.weight")
    assert not backbone(strategy.config, "exits.1.linear.weight")


def test_epoch_of_heads_costs_a_forward_pass(strategy):
    macs = strategy.parts.macs(2)
    # two epochs of the backbone at three passes, three of the heads at one
    assert strategy.effort(ClientReport(0, 2, "", 40)) == Effort((2 * 3 + 3) * 40 * macs)

"""DarkDistill's server half around its maths: what happens when a transfer fails."""

import torch

from strategies.darkdistill import strategy as module

SETTINGS = {"run.strategy": "darkdistill", "run.rounds": 2, "darkdistill.distill-steps": 1}


def test_diverged_transfer_is_dropped_and_generators_reset(run_strategy, monkeypatch, flower_log):
    whole = run_strategy({**SETTINGS, "darkdistill.distillation": False}).strategy
    original = module.transfer

    def diverging(tiers, *args, **kwargs):
        report = original(tiers, *args, **kwargs)
        next(iter(next(iter(tiers.values())).model.parameters())).data.fill_(torch.nan)
        return report

    monkeypatch.setattr(module, "transfer", diverging)
    broken = run_strategy(SETTINGS).strategy
    assert all(torch.equal(whole.model[key], broken.model[key]) for key in whole.model)
    assert "the distillation diverged" in str(flower_log)


def test_transfer_changes_the_average(run_strategy):
    plain = run_strategy({**SETTINGS, "darkdistill.distillation": False}).strategy
    taught = run_strategy(SETTINGS).strategy
    assert any(not torch.equal(plain.model[key], taught.model[key]) for key in plain.model)


def test_generator_sizes_are_logged(run_strategy, flower_log):
    generators = run_strategy({**SETTINGS, "run.rounds": 1}).strategy.generators
    assert f"{generators[1].parameter_count / 1e6:.2f} M" in next(line for line in flower_log if "generators" in line)

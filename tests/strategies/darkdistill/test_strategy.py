"""DarkDistill's server half around its maths: what is distilled on, what is logged, and what happens when it fails."""

from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.messages.protocol import ClientReport
from strategies.darkdistill import strategy as module

SETTINGS = {"run.strategy": "darkdistill", "run.rounds": 2, "darkdistill.distill-steps": 1}


def test_diverged_transfer_is_dropped_and_the_meter_follows_the_average(run_strategy, monkeypatch, flower_log):
    whole = run_strategy({**SETTINGS, "darkdistill.distillation": False}).strategy
    original = module.transfer

    def diverging(tiers, *args, **kwargs):
        report = original(tiers, *args, **kwargs)
        next(iter(next(iter(tiers.values())).model.parameters())).data.fill_(torch.nan)
        return report

    averages, merge = [], module.average_layers
    monkeypatch.setattr(module, "transfer", diverging)
    monkeypatch.setattr(
        module, "average_layers", lambda tiers, weights: averages.append(tiers) or merge(tiers, weights)
    )
    broken = run_strategy(SETTINGS).strategy
    assert all(torch.equal(whole.model[key], broken.model[key]) for key in whole.model)
    assert "the distillation diverged" in str(flower_log)
    last = averages[-1][max(broken.tiers)]  # of which the meter is, as after any round
    assert all(torch.equal(value, last[key]) for key, value in broken.meter.state_dict().items())


def test_batches_that_were_counted_are_no_divergence(run_strategy):
    strategy = run_strategy(SETTINGS).strategy
    long_run = {"units.0.norm.num_batches_tracked": torch.tensor(10**6), "weight": torch.ones(2)}
    assert strategy._sound(3, [long_run])
    assert not strategy._sound(3, [{**long_run, "weight": torch.tensor([1.0, 5000.0])}])


def test_transfer_changes_the_average(run_strategy):
    plain = run_strategy({**SETTINGS, "darkdistill.distillation": False}).strategy
    taught = run_strategy(SETTINGS).strategy
    assert any(not torch.equal(plain.model[key], taught.model[key]) for key in plain.model)


def test_generator_sizes_are_logged(run_strategy, flower_log):
    generators = run_strategy({**SETTINGS, "run.rounds": 1}).strategy.generators
    assert f"{generators[1].parameter_count / 1e6:.2f} M" in next(line for line in flower_log if "generators" in line)


def test_measuring_for_a_private_sketch_costs_a_pass_through_the_first_exit(prepare_run):
    sketch, client = {**SETTINGS, "difficulty.upload": "sketch"}, ClientReport(0, 2, "", 40)
    plain, private = (
        prepare_run({**sketch, "difficulty.epsilon": epsilon}).strategy.effort(client) for epsilon in (0.0, 1.0)
    )
    first = prepare_run(sketch).strategy.parts.exit_macs(2)[0]
    assert private == replace(plain, macs=plain.macs + 40 * first)


EVALUATED = {**SETTINGS, "server.evaluate-every": 2}
STILL = {"darkdistill.rkd-distance": 0.0, "darkdistill.rkd-angle": 0.0}  # nothing is distilled


@pytest.mark.parametrize("source", ["generated", "validation"])
def test_a_round_says_how_far_it_moved_and_how_varied_its_samples_were(run_strategy, source):
    terms = run_strategy({**EVALUATED, "darkdistill.source": source}).records[-1].terms
    assert terms["moved-distillation"] > 0
    assert terms["moved-clients"] > 0
    assert terms["moved-decay"] == 0
    assert {key for key in terms if key.endswith("variety")} == {
        "distill-1-2-variety", "distill-2-3-variety", "real-1-variety", "real-2-variety"
    }  # fmt: skip
    assert all(0 < value < 32 for key, value in terms.items() if key.endswith("variety"))
    assert ("generator-1-label" in terms) == (source == "generated")


def test_what_is_logged_of_real_samples_changes_no_weight(run_strategy):
    without, with_ = (run_strategy({**SETTINGS, "server.evaluate-every": every}).strategy.model for every in (0, 2))
    assert all(torch.equal(without[key], with_[key]) for key in with_)


def test_real_samples_teach_otherwise_than_generated_ones(run_strategy):
    real, generated = (run_strategy({**EVALUATED, "darkdistill.source": source}).strategy.model
                       for source in ("validation", "generated"))  # fmt: skip
    assert any(not torch.equal(real[key], generated[key]) for key in generated)


@pytest.mark.parametrize(
    "without", [{"darkdistill.distillation": False}, {"darkdistill.source": "validation"}], ids=["averaging", "real"]
)
def test_a_run_that_generates_nothing_has_no_generators(run_strategy, prepare_run, without):
    kept = {**EVALUATED, "run.rounds": 1, "darkdistill.keep-optimizers": True}
    strategy = run_strategy({**kept, **without}).strategy
    assert strategy.generators == {}
    assert not [key for key in strategy.state_dict()[0] if "generator" in key]
    earlier = prepare_run(kept).strategy.state_dict()  # of a version that made generators for every run
    strategy.load_state_dict(*earlier)
    assert all(torch.equal(value, earlier[0][key]) for key, value in strategy.state_dict()[0].items())


def test_real_samples_must_be_there(prepare_run):
    with pytest.raises(UserError, match=r"the server has no validation samples: set data\.validation"):
        prepare_run({**SETTINGS, "darkdistill.source": "validation"})


@pytest.mark.parametrize("variant", ["progressive", "parallel"])
def test_distillation_that_moves_nothing_is_warned_of_once(run_strategy, flower_log, variant):
    still = {**SETTINGS, **STILL, "darkdistill.gap-weight": 0.0, "darkdistill.variant": variant}
    run = run_strategy({**still, "darkdistill.distill-weight-decay": 1e-3})
    (line,) = [line for line in flower_log if "too little to matter" in line]
    assert line.startswith("round 1: the distillation moves the weights by ")
    terms = run.records[-1].terms
    assert terms["moved-distillation"] < 1e-3 * terms["moved-decay"]  # what rounding leaves
    assert 0 < terms["moved-decay"] < terms["moved-clients"]


def test_rescaled_gradients_teach_otherwise(run_strategy):
    one = {**SETTINGS, "run.rounds": 1}
    plain, rescaled = (run_strategy({**one, "darkdistill.rescale": how}).strategy.model for how in ("none", "boost"))
    assert any(not torch.equal(plain[key], rescaled[key]) for key in plain)


def test_a_run_without_generators_says_what_it_does(prepare_run, flower_log):
    prepare_run({**EVALUATED, "darkdistill.source": "validation"}).strategy.summary()
    assert "  a diagnostic: distils on the server's validation samples, without generators" in flower_log
    prepare_run({**SETTINGS, "darkdistill.distillation": False}).strategy.summary()
    assert "  averaging only, without distillation" in flower_log
    assert not [line for line in flower_log if "parameters, on the server only" in line]

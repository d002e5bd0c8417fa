"""Shared behaviour of personalised methods: keys, BatchNorm statistics, evaluation, independence of grouping."""

import copy
import math
import shutil

import pytest
import torch
from torch import nn

from common.data.batches import batches
from common.seeding import generator
from common.settings import read_section
from common.storage.client_store import ClientState
from common.storage.model_file import load_model
from common.weights.flat import FlatState
from strategies.personalised.base import (
    FineTuning,
    PersonalSettings,
    PersonalTraining,
    backbone,
    is_head,
    is_statistic,
)
from strategies.personalised.fedbabu import FedBABULocal
from tests.support.personal_runs import (
    HOME,
    NODES,
    Recorder,
    delivered,
    folder,
    kept,
    make_job,
    own_data,
    same,
    seeded,
)

NORM = {"network.name": "resnet_slim", "network.width": 4, "clients.mix": "0,0,0,1"}  # has BatchNorm
FEDPER = {"run.strategy": "fedper"}
PERSONAL = ("cafedistill", "ditto", "fedavg_ft", "fedbabu", "fedper", "fedrep", "local")


def statistics(state):
    return {key: value for key, value in state.items() if is_statistic(key)}


def test_keys_are_classified():
    assert is_head("exits.2.linear.weight")
    assert not is_head("units.1.exits.weight")
    names = ("running_mean", "running_var", "num_batches_tracked", "weight", "bias")
    assert [is_statistic(f"units.1.bn.{name}") for name in names] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("batchnorm", "expected"),
    [("local", {"units.1.bn.weight"}), ("averaged", {"units.1.bn.weight", "units.1.bn.running_mean"})],
)
def test_sent_keys_depend_on_batchnorm_option(prepare_run, batchnorm, expected):
    config = prepare_run({**FEDPER, "personal.batchnorm": batchnorm}).strategy.config
    keys = ("units.1.bn.weight", "units.1.bn.running_mean", "exits.1.linear.weight", "exits.1.norm.running_mean")
    assert {key for key in keys if backbone(config, key)} == expected


def test_invalid_settings_are_reported():
    assert read_section(PersonalSettings).problems == []
    assert len(read_section(PersonalSettings, batchnorm="none", finetune_epochs=0).problems) == 2


def test_batchnorm_statistics_stay_on_client_by_default(run_strategy):
    app = Recorder()
    strategy = run_strategy({**FEDPER, **NORM}, app=app).strategy
    assert not any(map(is_statistic, app.up() | app.down()))
    assert same(statistics(strategy.model), statistics(seeded(strategy)))
    first, second = (statistics(delivered(strategy, client)) for client in (0, 1))
    assert same(first, statistics(kept(strategy, 0)))
    assert not same(first, second)


def test_batchnorm_statistics_are_averaged_by_option(run_strategy):
    app = Recorder()
    changes = {**FEDPER, **NORM, **HOME, "personal.batchnorm": "averaged", "run.rounds": 1}
    strategy = run_strategy(changes, NODES, app).strategy
    uploads = {c: state.state_dict() for reply in app.replies for c, state in reply.lone.items()}
    samples = {result.client: result.num_examples for reply in app.replies for result in reply.results}
    total, averaged = sum(samples.values()), statistics(strategy.model)
    assert len(uploads) == 6
    assert averaged
    for key, value in averaged.items():
        if value.is_floating_point():
            mean = sum(samples[client] * uploads[client][key].double() for client in uploads) / total
            torch.testing.assert_close(value.double(), mean, rtol=0, atol=1e-6)
        else:
            assert value == max(int(upload[key]) for upload in uploads.values()) == 2
        assert all(torch.equal(delivered(strategy, client)[key], value) for client in range(6))
    assert not any(is_statistic(key) for key in kept(strategy, 0))


def by_hand(strategy, network, x, batch_sizes):
    """Return BatchNorm's statistics after one pass: means over batches of the mean and of the unbiased variance."""
    rows = batches(len(x), batch_sizes, generator(strategy.config.run.seed, "statistics", 1, 3))
    seen: dict[str, list[torch.Tensor]] = {}
    network = copy.deepcopy(network).train()
    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0]))
    with torch.no_grad():
        for batch in rows:
            network(x[batch])
    means = {f"{name}.running_mean": [t.mean((0, 2, 3)) for t in inputs] for name, inputs in seen.items()}
    variances = {f"{name}.running_var": [t.var((0, 2, 3)) for t in inputs] for name, inputs in seen.items()}
    counts = {f"{name}.num_batches_tracked": torch.tensor(len(inputs)) for name, inputs in seen.items()}
    return {key: torch.stack(values).mean(0) for key, values in {**means, **variances}.items()} | counts


def test_client_without_statistics_estimates_them_in_one_pass(prepare_run):
    strategy = prepare_run({**FEDPER, **NORM}).strategy
    job = make_job(strategy, 3)
    PersonalTraining().load(job, strategy_state(strategy, job))
    expected = by_hand(strategy, job.model.module, own_data(strategy, 3).x, 16)
    before = job.model.read(job.model.layout).state_dict()
    PersonalTraining().personalise(job)
    after = job.model.read(job.model.layout).state_dict()
    assert statistics(after).keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(after[key], value, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(after[key], value) for key, value in before.items() if key not in expected)
    assert all(module.momentum == 0.1 for module in job.model.module.modules() if isinstance(module, nn.BatchNorm2d))


def strategy_state(strategy, job) -> FlatState:
    return FlatState.of({key: strategy.model[key] for key in job.upload_layout.keys})


def test_client_with_statistics_uses_its_own(prepare_run):
    strategy = prepare_run({**FEDPER, **NORM}).strategy
    job = make_job(strategy, 3)
    outcome = PersonalTraining().train(job)
    again = make_job(strategy, 3, 2, kept=outcome.kept)
    PersonalTraining().load(again, outcome.state)
    PersonalTraining().personalise(again)
    state = again.model.read(again.model.layout).state_dict()
    assert all(torch.equal(outcome.kept.tensors[f"own.{key}"], value) for key, value in statistics(state).items())


def test_deeper_client_estimates_missing_statistics(prepare_run):
    strategy = prepare_run({**FEDPER, **NORM}).strategy
    shallow = make_job(strategy, 3, depth=1)
    outcome = PersonalTraining().train(shallow)
    job = make_job(strategy, 3, 2, kept=outcome.kept)
    PersonalTraining().load(job, strategy_state(strategy, job))
    fresh = statistics(seeded(strategy))
    PersonalTraining().personalise(job)
    state = job.model.read(job.model.layout).state_dict()
    assert not any(torch.equal(state[key], value) for key, value in fresh.items())


def test_estimate_of_head_keeps_averaged_statistics(prepare_run):
    wide = {**NORM, "network.name": "wrn16", "network.width": 1, "clients.mix": "equal"}  # BatchNorm in its heads
    strategy = prepare_run({**FEDPER, **wide, "personal.batchnorm": "averaged"}).strategy
    job = make_job(strategy, 3)
    for key, value in strategy.model.items():
        if is_statistic(key) and value.is_floating_point():
            value.add_(0.25)
    PersonalTraining().load(job, strategy_state(strategy, job))
    PersonalTraining().personalise(job)
    state, start = statistics(job.model.read(job.model.layout).state_dict()), seeded(strategy)
    assert {is_head(key) for key in state} == {True, False}
    for key, value in state.items():
        if is_head(key):
            assert not torch.equal(value, start[key]), key
        else:
            assert torch.equal(value, strategy.model[key]), key


def test_fine_tuning_continues_from_objective_state(prepare_run):
    learned = {"objective.name": "l2w", "objective.l2w-hidden": 4, "run.strategy": "fedbabu"}
    strategy = prepare_run({**learned, "clients.mix": "0,0,1"}).strategy
    outcome = FedBABULocal().train(make_job(strategy, 1))
    learned_state = {k: v for k, v in outcome.kept.tensors.items() if k.startswith("objective.3.")}
    assert learned_state
    own = {k: v for k, v in outcome.kept.tensors.items() if k.startswith("own.")}
    tuned = []
    for tensors in (outcome.kept.tensors, own):
        job = make_job(strategy, 1, kept=ClientState(dict(tensors)))
        FedBABULocal().load(job, strategy_state(strategy, job))
        FedBABULocal().personalise(job)
        tuned.append(job.model.floats.clone())
    assert not torch.equal(*tuned)
    deeper = make_job(strategy, 1, depth=2, kept=outcome.kept)  # weights of three exits do not fit two exits
    FedBABULocal().train(deeper)


def test_fine_tuning_is_local_training_with_other_batches(prepare_run):
    strategy = prepare_run({"run.strategy": "fedavg_ft", "personal.finetune-epochs": 1}).strategy
    one, two = make_job(strategy, 1), make_job(strategy, 1)
    FineTuning().personalise(one)
    FineTuning().train(two)
    assert not torch.equal(one.model.floats, two.model.floats)


@pytest.mark.parametrize("name", PERSONAL)
def test_last_evaluation_uses_delivered_model(run_strategy, name):
    run = run_strategy({"run.strategy": name, "clients.per-round": 4, "run.rounds": 2})
    assert not run.records[0].client_accuracy
    accuracy = run.records[-1].client_accuracy
    assert accuracy["clients"] == 6
    assert accuracy["sampled"]["clients"] == len(run.strategy.trained)
    means = []
    for client in range(6):
        data = own_data(run.strategy, client)
        stored_model = load_model(folder(run.strategy) / f"client-{client:06d}")
        with torch.inference_mode():
            right = [
                (z.argmax(1) == data.validation_y).double().mean() for z in stored_model.network(data.validation_x)
            ]
        means.append(float(sum(right)) / len(right))
        assert len(set(stored_model.policy.thresholds)) <= 1
        assert all(0.5 <= t <= 0.95 or math.isinf(t) for t in stored_model.policy.thresholds)
    assert accuracy["mean"] == pytest.approx(sum(means) / 6)


def test_clients_evaluate_after_last_requested_round(prepare_run):
    run = prepare_run({**FEDPER, "run.rounds": 5})
    run.strategy.start(run.grid, num_rounds=2)
    assert [bool(record.client_accuracy) for record in run.records] == [False, True]


def test_client_without_stored_state_does_not_affect_others(prepare_run, flower_log):
    run = prepare_run({**FEDPER, "run.rounds": 1})
    run.on_round = lambda strategy, record: shutil.rmtree(folder(strategy) / "client-000002")
    run.strategy.start(run.grid)
    assert run.failure == ""
    stored = {path.parent.name for path in folder(run.strategy).glob("client-*/model.safetensors")}
    assert stored == {f"client-{client:06d}" for client in (0, 1, 3, 4, 5)}
    assert any(
        "did not store a model: client 2: UserError: client 2: its state of round 1" in line for line in flower_log
    )


@pytest.mark.parametrize(
    ("name", "network"),
    [("cafedistill", {}), ("ditto", {**NORM, "clients.mix": "equal"}), ("fedrep", {})],
    ids=["cafedistill", "ditto with BatchNorm", "fedrep"],
)
def test_grouping_changes_no_bit_of_delivered_models(run_strategy, name, network):
    changes = {"run.strategy": name, "clients.per-round": 4, "cafedistill.across-depths": True}
    hosted = [({}, NODES[:1]), ({}, NODES[:3]), (HOME, NODES), ({"clients.per-node": 2}, NODES[:3])]
    ends = []
    for number, (own, nodes) in enumerate(hosted):
        strategy = run_strategy({**changes, **network, **own, "run.name": f"grouped-{number}"}, nodes).strategy
        policies = [load_model(folder(strategy) / f"client-{client:06d}").policy for client in range(6)]
        ends.append(([delivered(strategy, client) for client in range(6)], policies, strategy.model))
    for networks, policies, model in ends[1:]:
        assert all(same(one, two) for one, two in zip(networks, ends[0][0], strict=True))
        assert policies == ends[0][1]
        assert same(model, ends[0][2])

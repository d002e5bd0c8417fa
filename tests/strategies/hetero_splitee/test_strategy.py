"""Hetero-SplitEE's runs on the in-process grid: the same bits on any hosts, and as without a network."""

import logging
import socket
import time
from pathlib import Path

import pytest
import torch

from client.app import app
from common.data.batches import batch_count
from common.errors import UserError
from common.flower.local_grid import LocalGrid
from common.messages.protocol import ClientReport, ClientResult
from common.networks import build
from common.rpc.tensors import encode
from common.storage.client_store import ClientState
from common.storage.model_file import load_model
from common.weights.flat import FlatModel
from server.execution import prepare
from strategies.factory import make_strategy
from strategies.hetero_splitee.client import FRESH, SplitTraining, module_of
from strategies.hetero_splitee.learner import device_part, server_part
from strategies.hetero_splitee.offload import Suffixes
from strategies.hetero_splitee.prior import counts_of, log_prior
from strategies.hetero_splitee.statistics import statistics_of
from strategies.hetero_splitee.trainer import Trained
from strategies.method import Job, RoundUpdate, TierUpdate
from tests.conftest import Run
from tests.strategies.hetero_splitee.reference import synchronised
from tests.strategies.hetero_splitee.runs import (
    GRID,
    NODES,
    SPLIT,
    Spy,
    everything,
    kept,
    made_tokens,
    reference,
    same,
    told,
)
from tests.support.killing import run_and_kill

SEQUENTIAL = {"splitee.mode": "sequential"}
EPOCH = {"splitee.mode": "sequential", "splitee.granularity": "epoch", "train.epochs": 2}
AVERAGING = {"splitee.mode": "averaging"}
GLOBAL = {**AVERAGING, "splitee.aggregate-scope": "global"}
SYNCED = {"splitee.aggregate-scope": "auto", "splitee.client-sync": "auto"}
PRIOR = {"splitee.prior": "own"}
RETURN = {"splitee.gradient": "return", "splitee.exit-weight": 0.5}
MODES = {
    "sequential": SEQUENTIAL,
    "shared": {"splitee.statistics": "shared"},
    "own": {"splitee.statistics": "own", "splitee.turns": "shuffled"},
    "averaging-own": {**AVERAGING, "splitee.statistics": "own"},
    "prior": PRIOR,
    "averaging-prior": {**AVERAGING, **PRIOR},
    "epoch": EPOCH,
    "averaging": {**AVERAGING, "train.epochs": 3},
    "sequential-return": {**SEQUENTIAL, **RETURN, "train.epochs": 2},
    "epoch-return": {**EPOCH, **RETURN},
    "averaging-return": {**AVERAGING, **RETURN},
}
SLOW = {"own", "epoch", "epoch-return", "averaging-return"}  # variants of the others
modes = pytest.mark.parametrize(
    "mode", [pytest.param(mode, id=n, marks=[pytest.mark.slow] * (n in SLOW)) for n, mode in MODES.items()]
)
UNEVEN = {"data.partitioner": "dirichlet"}
FEW = {"data.limit": 120}  # two batches for each client


@pytest.mark.parametrize(
    "mode", [SEQUENTIAL, pytest.param(EPOCH, marks=pytest.mark.slow), AVERAGING], ids=["batch", "epoch", "averaging"]
)
def test_grouping_of_clients_on_nodes_changes_no_bit(undisturbed, mode):
    one, *others = (undisturbed({**mode, **UNEVEN}, NODES[:number]) for number in (1, 2, 6))
    state, records = everything(one.strategy), told(one)
    assert len([key for key in state if key.startswith("client.0.")]) > 10
    for other in others:
        assert same(everything(other.strategy), state)
        assert told(other) == records
    assert records[-1]["accuracy"]["clients"] == 6
    assert len(records[-1]["accuracy"]["exits"]) == 2
    assert sorted(records[-1]["accuracy"]["by_part"]) == [1, 2, 4]


@modes
def test_run_equals_training_without_streams_bit_for_bit(undisturbed, tmp_path, mode):
    run = undisturbed({**mode, **UNEVEN}, NODES[: (1, 2, 6)[list(MODES.values()).index(mode) % 3]])
    expected = reference(run.strategy, tmp_path, 2)
    assert same(run.strategy.server.state_dict()[0], expected.server.state_dict()[0])
    own = {f"client.{c}.{k}": v for c, device in expected.devices.items() for k, v in device.state_dict().items()}
    assert same({k: v for k, v in kept(run.strategy).items() if k.startswith("client.")}, own)


@pytest.mark.parametrize("how", [pytest.param("cut", marks=pytest.mark.slow), "own", "shared"])
def test_scope_global_equals_the_reference(split, monkeypatch, tmp_path, how):
    spy = Spy(monkeypatch)
    run = split({**GLOBAL, **UNEVEN, "splitee.statistics": how})
    after = dict(spy.after[1])  # the reference stores copies, too
    expected = reference(run.strategy, tmp_path, 1)
    for client, state in spy.before[2].items():
        wanted = dict(expected.devices[client].network.state_dict())
        if how != "cut":
            assert same(state, wanted)
        for key, value in state.items():  # what nodes add up, statistics by cut, is rounded
            torch.testing.assert_close(value, wanted[key], rtol=1e-5, atol=1e-6)
        kept = {key for key in state if "running_" in key and torch.equal(state[key], after[client][key])}
        assert bool(kept) == (how == "own")
    firsts = [state["units.0.0.weight"] for state in spy.before[2].values()]
    assert all(torch.equal(first, firsts[0]) for first in firsts)
    if how == "cut":
        return
    expected.run_round(2)
    assert same(run.strategy.server.state_dict()[0], expected.server.state_dict()[0])


@pytest.mark.parametrize("mode", ["sequential", "averaging"])
@pytest.mark.parametrize("how", ["own", "cut", "shared"])
def test_stored_model_answers_every_client_as_the_run_does(split, mode, how):
    strategy = split({**FEW, **PRIOR, "splitee.mode": mode, "splitee.statistics": how}).strategy
    state, server = strategy.final_model(), strategy.server
    network = build(strategy.spec, 0)
    network.load_state_dict({key: state[key] for key in network.state_dict()})
    running = statistics_of({key: value for key, value in state.items() if key not in network.state_dict()})
    cuts = {client: report.part for client, report in strategy.roster.reports.items()}
    assert sorted(running.clients) == (sorted(cuts) if how == "own" else [])
    assert sorted(running.cuts) == ([] if how == "shared" else [1, 2, 4])
    counts = counts_of(state, network.num_classes)
    suffixes, key = Suffixes(network, torch.device("cpu"), running, counts), "units.4.bn1.running_mean"
    for client, cut in {**cuts, 99: 2}.items():  # the last is no client of the run
        features = torch.randn(3, *suffixes.shapes[cut], generator=torch.Generator().manual_seed(client))
        answer = suffixes.logits(client, cut, features)
        assert torch.equal(answer, server.logits(client, cut, features)), client
        unadjusted = Suffixes(network, torch.device("cpu"), running).logits(client, cut, features)
        assert torch.equal(answer, unadjusted) == (client == 99)
    sets = {tuple(running.of(client, cut).get(key, state[key]).tolist()) for client, cut in cuts.items()}
    assert len(sets) == {"own": 6, "cut": 3, "shared": 1}[how]


@pytest.mark.parametrize(
    "mode", [pytest.param(SEQUENTIAL, marks=pytest.mark.slow), AVERAGING], ids=["sequential", "averaging"]
)
def test_priors_serve_clients_with_unlike_classes(undisturbed, mode):
    """Handwritten digits, a few classes a client: both exits are far better, and better than the commonest class."""
    unlike = {**mode, **SYNCED, **UNEVEN, "data.alpha": 0.1, "network.width": 4, "run.rounds": 3}
    plain, own = (undisturbed(unlike | {"splitee.prior": how}).records[-1].client_accuracy for how in ("none", "own"))
    assert own["majority"] == plain["majority"]
    for before, after in zip(plain["exits"], own["exits"], strict=True):
        assert after > before + 0.3
        assert after > own["majority"]


def test_stored_device_part_has_the_clients_prior_in_its_exit(undisturbed):
    strategy = undisturbed({**PRIOR, **UNEVEN}).strategy
    folder = Path(strategy.config.clients.store) / strategy.config.run.name
    cuts = {client: report.part for client, report in strategy.roster.reports.items()}
    for client, counts in strategy.server.labels().clients.items():  # one epoch: the device's own labels
        stored, trained = load_model(folder / f"client-{client:06d}"), kept(strategy)
        key = f"exits.{cuts[client]}.linear.bias"
        expected = trained[f"client.{client}.{key}"] + log_prior(counts)
        assert torch.equal(stored.network.state_dict()[key], expected)
    assert sorted(strategy.server.labels().clients) == sorted(cuts)


def test_modes_are_equal_for_one_client(split):
    alone = {"clients.count": 1, "clients.per-round": 1, "clients.mix": "0,1,0", "data.limit": 40}
    one, two = (split({**alone, **mode}).strategy for mode in (SEQUENTIAL, AVERAGING))
    assert same(one.model, two.model)
    seeded = make_strategy(one.config).model
    changed = {key.split(".")[1] for key in seeded if "units." in key and not torch.equal(one.model[key], seeded[key])}
    assert changed == {"2", "3", "4"}  # the layers after the cut
    ours, theirs = ({k: v for k, v in kept(s).items() if k.startswith("client.")} for s in (one, two))
    assert same(ours, theirs)


@pytest.mark.parametrize("how", ["same_cut", "prefix"])
def test_devices_continue_from_the_synchronised_parts(split, monkeypatch, how):
    spy = Spy(monkeypatch)
    reports = split({**FEW, "splitee.client-sync": how}).strategy.roster.reports
    cuts = {client: report.part for client, report in reports.items()}
    samples = {client: report.num_examples for client, report in reports.items()}
    running = {key for state in spy.after[1].values() for key in state if "running_" in key or "tracked" in key}
    expected = synchronised(spy.after[1], cuts, samples, how, running)
    assert sorted(spy.before[2]) == list(range(6))
    for client, state in spy.before[2].items():
        assert state.keys() == expected[cuts[client]].keys()
        for key, value in state.items():  # what nodes add up is rounded
            torch.testing.assert_close(value, expected[cuts[client]][key], rtol=1e-5, atol=1e-6)
    assert not same(spy.before[2][0], spy.after[1][0])


@pytest.mark.parametrize("mode", [{"splitee.client-sync": "same_cut"}, AVERAGING], ids=["devices", "copies"])
def test_no_model_is_averaged_between_periods(split, monkeypatch, mode):
    spy, averages = Spy(monkeypatch), []

    class Watched(Run):
        def on_round(self, strategy, record):
            averages.append({key: value.clone() for key, value in strategy.server.model().items()})

    monkeypatch.setattr("tests.conftest.Run", Watched)
    split({**FEW, **mode, "splitee.period": 2, "run.rounds": 4})
    alone = [same(spy.before[r + 1][0], spy.after[r][0]) for r in (1, 2, 3)]
    assert alone == ([True, False, True] if mode is not AVERAGING else [True, True, True])
    moved = [not same(averages[r], averages[r - 1]) for r in (1, 2, 3)]
    assert moved == ([True, False, True] if mode is AVERAGING else [True, True, True])


@pytest.mark.parametrize("mode", [SEQUENTIAL, AVERAGING], ids=["sequential", "averaging"])
def test_an_average_that_would_overwrite_other_rounds_is_refused(prepare_run, mode):
    some = {**SPLIT, **mode, "splitee.client-sync": "same_cut", "clients.per-round": 3}
    with pytest.raises(
        UserError, match=r"splitee\.period is 2, but clients\.per-round is 3 of 6 clients: .*per-round=6"
    ):
        prepare_run({**some, "splitee.period": 2})
    for possible in ({}, {"splitee.period": 2, "clients.per-round": 6}):
        prepare_run({**some, **possible})


@pytest.mark.parametrize(("how", "newer"), [("same_cut", []), ("prefix", ["units.0"])], ids=["same_cut", "prefix"])
def test_device_left_out_of_an_average_keeps_its_layers(prepare_run, how, newer):
    """Cut 4 took part in round 1 alone, round 2 averages cut 1: cut 4 takes over what cut 1 has, and nothing else."""
    strategy = prepare_run({**SPLIT, "splitee.client-sync": how, "splitee.period": 2}).strategy
    shallow, deep = (
        {k: torch.full(s, v) for k, s in strategy.layouts[cut].floats + strategy.layouts[cut].counters}
        for cut, v in ((1, 1.0), (4, 4.0))
    )
    strategy.committed = {0: 2, 5: 1}
    strategy._average_devices(2, RoundUpdate({1: TierUpdate(shallow, 10, (0,))}))
    extra = strategy.client_values(ClientReport(5, 4, "", 10))
    assert extra == {FRESH: newer}
    assert strategy.client_values(ClientReport(0, 1, "", 10)) == {FRESH: ["units.0", "exits.1"]}
    model = FlatModel(device_part(strategy.network, 4))
    job = Job(5, 4, 3, strategy.config, model, torch.device("cpu"), list, client_values=extra, kept=ClientState(deep))
    SplitTraining().load(job, strategy.part_state(4))
    own = {key for key, value in model.module.state_dict().items() if value.flatten()[0] == 4}
    assert {module_of(key) for key in own} == {f"units.{u}" for u in range(4)} - set(newer) | {"exits.4"}
    strategy.committed[5] = 3  # it took part once more: everything is its own again
    assert strategy.client_values(ClientReport(5, 4, "", 10)) == {FRESH: []}


def test_client_state_survives_rounds_without_the_client(split, tmp_path):
    """Momentum and layers outlive the rounds that a client sits out, and nodes matter as little as before."""
    some = {**FEW, "clients.per-round": 3, "run.rounds": 4, "splitee.mode": "averaging", "splitee.period": 3}
    one, two = split(some, NODES[:1]), split(some, NODES)
    assert len(set(one.strategy.committed.values())) > 1
    assert [sum(record.clients.values()) for record in one.records] == [3, 3, 3, 3]
    assert same(everything(one.strategy), everything(two.strategy))
    assert told(one) == told(two)


def rerated(prepare_run, changes, before, after):
    """Run three rounds; client 5's device declares something else after the first."""
    home = {**SPLIT, **FEW, **changes, "clients.per-node": 1, "run.rounds": 3}
    run = prepare_run(home, [*NODES[:5], {"partition-id": 5, **before}], grid=GRID)
    on_round = run.on_round

    def change(strategy, record):
        on_round(strategy, record)
        list(run.grid.contexts.values())[5].node_config.update(after)

    run.on_round = change
    run.strategy.start(run.grid)
    return run


@pytest.mark.parametrize("mode", [SEQUENTIAL, AVERAGING], ids=["sequential", "averaging"])
def test_deeper_cut_keeps_the_existing_layers(prepare_run, monkeypatch, mode):
    spy = Spy(monkeypatch)
    run = rerated(prepare_run, mode, {"cut": 2}, {"cut": 4})
    assert all(record.failures == {} for record in run.records)
    assert [record.clients for record in run.records] == [{1: 2, 2: 3, 4: 1}, {1: 2, 2: 3, 4: 1}, {1: 2, 2: 2, 4: 2}]
    first, third = spy.after[2][5], spy.before[3][5]
    assert {key.split(".")[1] for key in first} == {"0", "1", "2"}  # two units and the exit at 2
    assert {key.split(".")[1] for key in third} == {"0", "1", "2", "3", "4"}
    shared = {key: value for key, value in first.items() if key.startswith("units.")}
    assert same({key: third[key] for key in shared}, shared)
    seeded = run.strategy.parts.take(4).state_dict()
    new = {key: value for key, value in third.items() if key not in shared}
    assert same(new, {key: seeded[key] for key in new})


def test_shallower_cut_is_refused_once_without_waiting(prepare_run, monkeypatch, flower_log):
    spy = Spy(monkeypatch)
    started = time.monotonic()
    run = rerated(prepare_run, {"stream.patience": 120.0}, {"cut": 4}, {"cut": 1})
    assert time.monotonic() - started < 60
    assert [list(record.failures) for record in run.records] == [[], [5], []]
    batches = [record.terms["batches"] for record in run.records]
    assert [record.terms["missing"] for record in run.records] == [0, batches[0] - batches[1], 0]
    assert batches[0] > batches[1] > 0
    missing = batches[0] - batches[1]
    assert f"round 2: client 5: {missing} batches are missing, 0 came and counted once" in flower_log
    old, new = spy.after[1][5], spy.before[3][5]
    shared = {key: value for key, value in old.items() if key.startswith("units.0.")}
    assert same({key: new[key] for key in shared}, shared)
    assert 5 not in spy.after[2]


@pytest.mark.parametrize(
    "mode",
    [
        SEQUENTIAL,
        {**AVERAGING, "splitee.period": 2},
        pytest.param({"splitee.client-sync": "prefix"}, marks=pytest.mark.slow),
        pytest.param(GLOBAL, marks=pytest.mark.slow),
        {**GLOBAL, "splitee.statistics": "own"},
        pytest.param({"splitee.statistics": "own", "splitee.turns": "shuffled"}, marks=pytest.mark.slow),
        PRIOR,
        pytest.param({**GLOBAL, **PRIOR}, marks=pytest.mark.slow),
    ],
    ids=["sequential", "averaging", "prefix", "global", "global-own", "own", "prior", "global-prior"],
)
def test_killed_and_resumed_run_has_the_same_bits(flat, tmp_path, mode):
    settings = {**flat, **SPLIT, **FEW, **mode, "run.rounds": 3, "run.root": str(tmp_path), "clients.per-round": 5}
    whole, reached = prepare({**settings, "run.name": "whole"}), {**settings, "run.name": "killed"}
    whole.start(LocalGrid(app, NODES[:1]))
    for moment, round_ in (("checkpoint", 1), ("line", 3)) if mode is SEQUENTIAL else (("store", 2),):
        run_and_kill(reached, moment, round_, NODES[:1])
        reached = {"run.resume": str(tmp_path / "killed")}
    resumed = prepare(reached)
    resumed.start(LocalGrid(app, NODES[:1]))
    state = everything(whole)
    assert same(everything(resumed), state)
    assert whole.state_dict()[1] == resumed.state_dict()[1]
    assert any("momentum" in key and value.abs().sum() > 0 for key, value in state.items() if key.startswith("client."))
    assert any("momentum" in key for key in state if key.startswith(("server.", "copy.")))


@pytest.mark.parametrize("coding", [*(pytest.param(c, marks=pytest.mark.slow) for c in ("bf16", "fp16")), "uint8"])
def test_coarser_codings_train_nearly_as_well(undisturbed, split, coding):
    exact, coarse = undisturbed({"run.rounds": 4}), split({"run.rounds": 4, "splitee.coding": coding})
    for one, two in zip(exact.records, coarse.records, strict=True):
        assert one.client_metrics == two.client_metrics  # devices do not notice
        assert two.terms["server_loss"] == pytest.approx(one.terms["server_loss"], rel=0.1)
    assert not same(exact.strategy.model, coarse.strategy.model)


def test_round_reports_batches_loss_and_memory(undisturbed):
    sequential, averaging = undisturbed(SEQUENTIAL), undisturbed(AVERAGING)
    strategy = sequential.strategy
    weights = strategy.server.state_dict()[0]
    for run in (sequential, averaging):
        for record in run.records:
            reports = run.strategy.roster.reports.values()
            assert record.terms["batches"] == sum(batch_count(report.num_examples, 8) for report in reports)
            assert record.terms["missing"] == 0
            assert 0 < record.terms["server_loss"] < 5
            assert 0 < record.terms["server_seconds"] < record.seconds["round"]
    assert sequential.records[0].terms["server_bytes"] == sum(value.nbytes for value in weights.values())
    # six copies and the average: more than the layers after the cuts six times, and less than everything fourteen times
    whole = sum(value.nbytes for value in averaging.strategy.model.values())
    parts = [state for cut in (1, 2, 4) for state in [server_part(strategy.network, cut).state_dict()] * 2]
    copies = sum(value.nbytes for part in parts for value in part.values())
    assert whole + copies < averaging.records[0].terms["server_bytes"] < whole + 2 * copies


def test_messages_carry_no_weights_and_logs_no_token(undisturbed, split, flower_log, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    small, tokens = undisturbed(SEQUENTIAL), made_tokens(monkeypatch)
    run = split({"network.width": 8})
    assert sum(value.nbytes for value in run.strategy.model.values()) > 100_000
    for one, two in zip(run.records, small.records, strict=True):
        assert all(abs(one.traffic[way] - two.traffic[way]) < 2_000 for way in ("down", "up"))
    averaged = split({"network.width": 8, "splitee.client-sync": "same_cut"})
    assert all(averaged.records[0].traffic[way] > run.records[0].traffic[way] + 50_000 for way in ("down", "up"))
    lines = [*flower_log, *(record.getMessage() for record in caplog.records)]
    assert any("streams are served at 127.0.0.1:" in line for line in lines)
    assert len(tokens) == 2
    assert not any(token in line for token in tokens for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network.exits": "2,5"}, "places exits at the cuts: leave network.exits and network.tiers empty"),
        ({"network.tiers": "2,4"}, "places exits at the cuts"),
        ({"splitee.cuts": "1,5"}, "splitee.cuts is 1,5, but the network has 5 units: cuts end at 4"),
        ({"splitee.cuts": "2,2"}, "splitee.cuts is '2,2', has 2 twice"),
        ({"clients.mix": "0.5,0.5"}, "one share, 0 or more, for each of the 3 tiers"),
        ({"stream.host": ""}, "stream.host is empty"),
        ({"stream.port": 70000}, "stream.port is 70000, must be at least 0 and at most 65535"),
        ({"stream.patience": 0.0}, "stream.patience"),
        ({"splitee.mode": "both"}, "splitee.mode"),
        ({"splitee.aggregate-scope": "global"}, 'needs splitee.mode "averaging"'),
        ({"splitee.gradient": "return", "splitee.coding": "uint8"}, "256 levels hold no gradient"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_unsupported_configuration_is_refused_at_start(prepare_run, changes, message):
    with pytest.raises(UserError) as raised:
        prepare_run({**SPLIT, **changes})
    assert message in str(raised.value)
    assert str(raised.value).removeprefix("the configuration has mistakes:\n").count("\n") == 0


@pytest.mark.parametrize(
    "changes", [{"stream.host": "203.0.113.1"}, {"stream.bind": "203.0.113.1"}], ids=["host", "bind"]
)
def test_foreign_address_cannot_be_served(prepare_run, changes):
    run = prepare_run({**SPLIT, **changes})
    with pytest.raises(UserError, match=r"cannot listen at 203\.0\.113\.1:0: port 0 is taken, or .* not this machine"):
        run.strategy.start(run.grid)
    assert run.records == []


def test_taken_port_is_named(prepare_run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = prepare_run({**SPLIT, "stream.port": port})
        with pytest.raises(UserError, match=f"port {port} is taken"):
            run.strategy.start(run.grid)


def test_streams_off_loopback_are_always_encrypted(undisturbed, split, flower_log):
    run = split({"stream.bind": "0.0.0.0"})
    assert any("streams are served at 0.0.0.0:" in line and line.endswith(", TLS") for line in flower_log)
    assert [record.failures for record in run.records] == [{}, {}]
    assert same(run.strategy.model, undisturbed(SEQUENTIAL).strategy.model)


@pytest.mark.parametrize("coding", ["fp32", "uint8"])
def test_streamed_bytes_of_the_simulated_clock_are_those_on_the_wire(undisturbed, monkeypatch, coding):
    sent: list[int] = []

    def counted(tensor, how):
        description, data = encode(tensor, how)
        sent.append(len(data))
        return description, data

    monkeypatch.setattr("strategies.hetero_splitee.stream.encode", counted)
    changes = {"splitee.coding": coding, "run.rounds": 1, "train.epochs": 2, "server.clients-evaluate-every": 0}
    strategy = undisturbed({**changes, "data.client-test": 0.0}).strategy
    reports = strategy.roster.reports.values()
    efforts = {report.client: strategy.effort(report) for report in reports}
    labels = {report.client: 2 * report.num_examples for report in reports}
    during_training = sent[: 2 * sum(batch_count(r.num_examples, 8) for r in reports)]
    assert sum(during_training) == sum(effort.up - labels[client] for client, effort in efforts.items())
    assert {effort.down for effort in efforts.values()} == {0}
    assert {effort.exchanges for effort in efforts.values()} == {1}


def test_returned_gradients_come_down_and_are_waited_for(prepare_run):
    settings = {**SPLIT, **RETURN, "train.epochs": 2, "clients.mix": "equal", "clients.device": "cpu"}
    strategy = prepare_run(settings).strategy
    effort = strategy.effort(ClientReport(0, 1, "", 20))
    features = 2 * 20 * 4 * torch.Size(strategy.shapes[1]).numel()
    assert (effort.up, effort.down, effort.exchanges) == (features + 2 * 20, features, 1 + 2 * 3)
    assert effort.macs == 3 * 2 * 20 * strategy.parts.macs(1)


def test_device_that_is_too_slow_sends_nothing(undisturbed, tmp_path):
    file = tmp_path / "own.toml"
    quick = 'compute = "1000TFLOPS"\nbandwidth = "1000Tbps"\n'
    file.write_text(f"[fast]\n{quick}latency = 1.0\n[slow]\n{quick}latency = 3.0\n")
    own = {"clients.devices": "fast:2,slow:1", "clients.profiles": str(file), "clients.mix": "equal"}
    run = undisturbed({**own, "clients.clock": "simulated", "round.deadline": 2.0, "run.rounds": 2})
    assert [sorted(record.failures) for record in run.records] == [[4, 5]] * 2
    assert [record.terms["missing"] for record in run.records] == [16, 16]  # eight batches each
    assert [record.device["seconds"] for record in run.records] == [2.0, 2.0]
    assert set(run.strategy.committed) == {0, 1, 2, 3}


@pytest.mark.parametrize(("network", "fits"), [("resnet_slim", False), ("lenet", True)])
def test_client_with_one_sample_takes_part_where_no_layer_normalises(prepare_run, network, fits):
    strategy = prepare_run({**SPLIT, "network.name": network, "splitee.cuts": "1,2", "clients.mix": "equal"}).strategy
    assert strategy.eligible(ClientReport(0, 1, "", 1)) == fits
    assert strategy.eligible(ClientReport(0, 1, "", 2))


@pytest.mark.parametrize("mode", ["sequential", "averaging"])
def test_prior_of_a_client_that_failed_stays_that_of_its_last_round(prepare_run, mode):
    strategy = prepare_run({**SPLIT, **PRIOR, "splitee.mode": mode, "splitee.aggregate-scope": "server"}).strategy
    counts, closed = strategy.server.labels(), []
    strategy.server.close_round = lambda samples, parts: closed.append(samples)
    for labels, finished in ((2, True), (5, False)):
        counts.open_round()
        counts.count(1, torch.full((labels,), 3))
        results = {1: ClientResult(1, 1, labels)} if finished else {}
        strategy._close_round(RoundUpdate(results=results), Trained(samples={1: labels}))
    assert closed == [{1: 2}, {1: 5}]  # what a client has streamed counts as far as it came
    assert counts.clients[1].sum() == 2
